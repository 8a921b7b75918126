package campaign

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// taken is a desk on which somebody else has every key.
type taken struct {
	mu     sync.Mutex
	rounds []int // how many keys each try had
}

func (d *taken) TryMany(_ context.Context, keys []advisory.Key, _ advisory.Mode) ([]*lockmgr.Hold, []error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rounds = append(d.rounds, len(keys))
	errs := make([]error, len(keys))
	for i := range errs {
		errs[i] = lockerr.NotAcquired
	}
	return make([]*lockmgr.Hold, len(keys)), errs
}

func (d *taken) tries() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.rounds)
}

// deaf is a ledger that cannot reach its server.
type deaf struct {
	mu   sync.Mutex
	hear map[string]func(string)
}

func (l *deaf) Query(context.Context, *pipeline.Statement, ...[]byte) ([][][]byte, error) {
	return nil, errors.New("away")
}
func (l *deaf) Holder(context.Context) (int64, error) { return 0, errors.New("away") }
func (l *deaf) Notify(string)                         {}
func (l *deaf) Subscribe(prefix string, f func(string)) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hear[prefix] = f
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.hear, prefix)
	}
}

func (l *deaf) tell(prefix, payload string) {
	l.mu.Lock()
	f := l.hear[prefix]
	l.mu.Unlock()
	f(prefix + payload)
}

// However many campaigns there are, they are one try a second.
func TestOffice_OneTryASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const campaigns = 100
		d, l := &taken{}, &deaf{hear: map[string]func(string){}}
		o := New(Config{Desk: d, Ledger: l, Report: func(string, error) {}})
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		for i := range campaigns {
			run, err := o.Join(fmt.Sprint(i), advisory.Key{ID: int64(i)})
			require.NoError(t, err)
			wg.Go(func() {
				defer run.Leave()
				_, err := run.Elect(ctx)
				require.ErrorIs(t, err, context.Canceled)
				require.ErrorContains(t, err, "enough")
			})
		}
		synctest.Wait()
		before := d.tries()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.InDelta(t, time.Minute/every, d.tries()-before, 7)
		for _, n := range d.rounds[before:] {
			require.Equal(t, campaigns, n)
		}

		// Who hears that a post is free tries at once, and only for that.
		before = d.tries()
		l.tell(freePrefix, "42")
		l.tell(freePrefix, "unknown")
		l.tell(resignPrefix, "7/42")
		l.tell(resignPrefix, "nonsense")
		time.Sleep(spread)
		synctest.Wait()
		require.Contains(t, d.rounds[before:], 1)

		cancel(errors.New("enough"))
		wg.Wait()
		synctest.Wait()
		require.Empty(t, o.posts)
		require.False(t, o.trying || o.keeping, "without campaigns nothing runs")
		before = d.tries()
		time.Sleep(time.Minute)
		require.Equal(t, before, d.tries())
		o.Close(t.Context())
	})
}

func TestOffice_HoldsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &taken{}, &deaf{hear: map[string]func(string){}}
		o := New(Config{Desk: d, Ledger: l, Report: func(string, error) {}})
		before, err := o.Join("x", advisory.Key{})
		require.NoError(t, err)
		o.mu.Lock()
		o.rest("x")
		o.mu.Unlock()
		before.Leave()
		run, err := o.Join("x", advisory.Key{}) // another campaign of the same client
		require.NoError(t, err)
		started := time.Now()
		done := make(chan error)
		go func() {
			_, err := run.Elect(t.Context())
			done <- err
		}()
		synctest.Wait()
		l.tell(freePrefix, "x")
		for d.tries() == 0 {
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		require.GreaterOrEqual(t, time.Since(started), holdBack)
		require.Less(t, time.Since(started), holdBack+2*every)
		o.Close(t.Context())
		require.ErrorIs(t, <-done, lockerr.Closed)
		run.Leave()
		_, err = o.Join("x", advisory.Key{})
		require.ErrorIs(t, err, lockerr.Closed)
	})
}

func TestArrays(t *testing.T) {
	t.Parallel()
	require.Equal(t, `{"a","b\"c\\","{,}"}`, string(texts([]string{"a", `b"c\`, "{,}"})))
	require.Equal(t, `{}`, string(texts(nil)))
	require.Equal(t, `{1,-2}`, string(bigints([]int64{1, -2})))
}
