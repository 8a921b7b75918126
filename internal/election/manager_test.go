package election

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

// taken is a lock manager with which somebody else has every key.
type taken struct {
	mu     sync.Mutex
	rounds []int // how many keys each try had
}

func (d *taken) TryMany(_ context.Context, keys []advisory.Named, _ advisory.Mode) ([]*lockmgr.Hold, []error) {
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

// deaf is a sidecar that cannot reach its server.
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

// However many candidates there are, they are one try a second.
func TestManager_OneTryASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const candidates = 100
		d, l := &taken{}, &deaf{hear: map[string]func(string){}}
		m := New(Config{Locks: d, Sidecar: l, Report: func(string, error) {}})
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		for i := range candidates {
			run, err := m.Join(fmt.Sprint(i), advisory.Named{Key: advisory.Key{ID: int64(i)}})
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
			require.Equal(t, candidates, n)
		}

		// Who hears that a leader has resigned tries at once, and only for that.
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
		require.Empty(t, m.contests)
		require.False(t, m.trying || m.writing, "without candidates nothing runs")
		before = d.tries()
		time.Sleep(time.Minute)
		require.Equal(t, before, d.tries())
		m.Close(t.Context())
	})
}

func TestManager_HoldsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, l := &taken{}, &deaf{hear: map[string]func(string){}}
		m := New(Config{Locks: d, Sidecar: l, Report: func(string, error) {}})
		before, err := m.Join("x", advisory.Named{})
		require.NoError(t, err)
		m.mu.Lock()
		m.holdOff("x")
		m.mu.Unlock()
		before.Leave()
		run, err := m.Join("x", advisory.Named{}) // another candidate of the same client
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
		m.Close(t.Context())
		require.ErrorIs(t, <-done, lockerr.Closed)
		run.Leave()
		_, err = m.Join("x", advisory.Named{})
		require.ErrorIs(t, err, lockerr.Closed)
	})
}
