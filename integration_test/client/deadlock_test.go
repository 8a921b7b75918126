package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// outcome is how a wait of a ring ended.
type outcome struct {
	err  error
	took time.Duration
}

// ring lets each of n goroutines, which take turns with the clients, hold one key and wait for the next one's. It
// returns how the waits ended; each releases what it holds when it has what it waits for, or not.
func ring(t *testing.T, name string, n int, clients ...*pgbaton.Client) []outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	var locks []*pgbaton.Lock
	for i := range n {
		lock, err := clients[i%len(clients)].Acquire(ctx, ringKey(name, i))
		require.NoError(t, err)
		locks = append(locks, lock)
	}
	outcomes := make([]outcome, n)
	var wg sync.WaitGroup
	for i, lock := range locks {
		wg.Go(func() {
			defer func() {
				if err := lock.Release(ctx); err != nil {
					t.Error(err)
				}
			}()
			began := time.Now()
			inner, stop := context.WithTimeout(lock.Context(), testkit.Patience)
			defer stop()
			next, err := clients[i%len(clients)].Acquire(inner, ringKey(name, (i+1)%n))
			outcomes[i] = outcome{err, time.Since(began)}
			if err == nil {
				if err = next.Release(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return outcomes
}

// ringKey has a name that must be quoted in an array.
func ringKey(name string, i int) pgbaton.Key { return pgbaton.Name(fmt.Sprintf(`%s/%d, "\}`, name, i)) }

// victim requires that exactly one of the waits ended as a deadlock, and returns what its error says.
func victim(t *testing.T, outcomes []outcome) string {
	t.Helper()
	var found error
	for _, o := range outcomes {
		if o.err == nil {
			continue
		}
		require.ErrorIs(t, o.err, pgbaton.ErrDeadlock)
		require.ErrorIs(t, o.err, pgbaton.ErrNotAcquired)
		require.NotErrorIs(t, o.err, context.Canceled)
		require.NoError(t, found, "a second victim")
		testkit.Figure(t, "a deadlock was found after %v", o.took)
		found = o.err
	}
	require.Error(t, found, "no victim")
	return found.Error()
}

func TestDeadlock_Rings(t *testing.T) {
	t.Parallel()
	a, b, dsn := pair(t)
	small := testclient.New(t, dsn, &pgbaton.Config{MaxConns: 2})
	for name, clients := range map[string][]*pgbaton.Client{
		"OfOneClient": {a}, "OfTwo": {a, b}, "OfASmallOne": {small}, "OfASmallAndALargeOne": {small, a}, "OfALargeAndASmallOne": {a, small},
	} {
		for _, n := range []int{1, 2, 3, 5} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				t.Parallel()
				message := victim(t, ring(t, t.Name(), n, clients...))
				for i := range n {
					require.Contains(t, message, ringKey(t.Name(), i).String())
				}
			})
		}
	}
}

func TestDeadlock_ByOtherWays(t *testing.T) {
	t.Parallel()
	a, b, dsn := pair(t)
	ctx := testkit.Context(t)

	// cross lets acquires run that wait for one another, and returns how they ended.
	cross := func(t *testing.T, acquires ...func() error) []outcome {
		t.Helper()
		outcomes := make([]outcome, len(acquires))
		var wg sync.WaitGroup
		for i, f := range acquires {
			wg.Go(func() {
				began := time.Now()
				err := f()
				outcomes[i] = outcome{err, time.Since(began)}
			})
		}
		wg.Wait()
		return outcomes
	}
	// nested acquires a key with a context that holds another, and gives both back.
	nested := func(lock *pgbaton.Lock, acquire func(context.Context) (*pgbaton.Lock, error)) func() error {
		return func() error {
			inner, cancel := context.WithTimeout(lock.Context(), testkit.Patience)
			defer cancel()
			second, err := acquire(inner)
			if err == nil {
				err = second.Release(ctx)
			}
			return errors.Join(err, lock.Release(ctx))
		}
	}

	t.Run("Do", func(t *testing.T) {
		t.Parallel()
		x, y := ringKey(t.Name(), 1), ringKey(t.Name(), 2)
		held := make(chan struct{}, 2)
		both := make(chan struct{})
		do := func(c *pgbaton.Client, first, second, other pgbaton.Key) func() error {
			return func() error {
				return c.Do(ctx, first, func(ctx context.Context, _ *pgbaton.Lock) error {
					return c.Do(ctx, second, func(ctx context.Context, _ *pgbaton.Lock) error {
						held <- struct{}{}
						<-both
						return c.Do(ctx, other, func(context.Context, *pgbaton.Lock) error { return nil })
					})
				})
			}
		}
		go func() {
			<-held
			<-held
			close(both)
		}()
		victim(t, cross(t, do(a, x, pgbaton.Name("inner a"), y), do(b, y, pgbaton.Name("inner b"), x)))
	})
	t.Run("SharedAndExclusive", func(t *testing.T) {
		t.Parallel()
		x, y := ringKey(t.Name(), 1), ringKey(t.Name(), 2)
		first, err := a.AcquireShared(ctx, x)
		require.NoError(t, err)
		second, err := b.Acquire(ctx, y)
		require.NoError(t, err)
		victim(t, cross(t,
			nested(first, func(ctx context.Context) (*pgbaton.Lock, error) { return a.AcquireShared(ctx, y) }),
			nested(second, func(ctx context.Context) (*pgbaton.Lock, error) { return b.Acquire(ctx, x) })))
	})
	t.Run("SharedBehindAWriterWhoHoldsNothing", func(t *testing.T) {
		t.Parallel()
		x, y := ringKey(t.Name(), 1), ringKey(t.Name(), 2)
		first, err := a.AcquireShared(ctx, x)
		require.NoError(t, err)
		second, err := b.Acquire(ctx, y)
		require.NoError(t, err)
		writer := background(t, func() (*pgbaton.Lock, error) {
			lock, err := b.Acquire(ctx, x)
			if err == nil {
				err = lock.Release(ctx)
			}
			return lock, err
		})
		queued(t, dsn, x) // before the reader
		outcomes := cross(t,
			nested(first, func(ctx context.Context) (*pgbaton.Lock, error) { return a.Acquire(ctx, y) }),
			nested(second, func(ctx context.Context) (*pgbaton.Lock, error) { return b.AcquireShared(ctx, x) }))
		victim(t, outcomes)
		<-writer
	})
	t.Run("SharedAgainBehindAWriter", func(t *testing.T) {
		t.Parallel()
		x := ringKey(t.Name(), 1)
		lock, err := a.AcquireShared(ctx, x)
		require.NoError(t, err)
		writer := background(t, func() (*pgbaton.Lock, error) { return a.Acquire(ctx, x) })
		var took time.Duration
		for err == nil { // until the writer stands before the second reader
			began := time.Now()
			var second *pgbaton.Lock
			if second, err = a.AcquireShared(lock.Context(), x); err == nil {
				require.NoError(t, second.Release(ctx))
			}
			took = time.Since(began)
		}
		require.NoError(t, lock.Release(ctx))
		require.NoError(t, (<-writer).Release(ctx))
		victim(t, []outcome{{err, took}})
	})
	t.Run("TwoCyclesThroughOneWait", func(t *testing.T) {
		t.Parallel()
		x, y := ringKey(t.Name(), 1), ringKey(t.Name(), 2)
		first, err := a.AcquireShared(ctx, x)
		require.NoError(t, err)
		second, err := b.AcquireShared(ctx, x)
		require.NoError(t, err)
		both, err := a.Acquire(ctx, y)
		require.NoError(t, err)
		// The wait through which both go is not the oldest: it would be the others that end, and both of them.
		later := func(f func() error) func() error {
			return func() error {
				conn := testkit.Connect(t, dsn)
				testkit.WaitFor(t, conn, "SELECT EXISTS (SELECT FROM pgbaton.registry WHERE kind = 'watched' AND name = $1)", y.String())
				return f()
			}
		}
		victim(t, cross(t,
			nested(first, func(ctx context.Context) (*pgbaton.Lock, error) { return a.Acquire(ctx, y) }),
			later(nested(both, func(ctx context.Context) (*pgbaton.Lock, error) { return a.Acquire(ctx, x) })),
			later(nested(second, func(ctx context.Context) (*pgbaton.Lock, error) { return b.Acquire(ctx, y) }))))
	})
	t.Run("AcquireAll", func(t *testing.T) {
		t.Parallel()
		x, y, z := ringKey(t.Name(), 1), ringKey(t.Name(), 2), ringKey(t.Name(), 3)
		set, err := a.AcquireAll(ctx, x, z)
		require.NoError(t, err)
		lock, err := b.Acquire(ctx, y)
		require.NoError(t, err)
		victim(t, cross(t,
			func() error {
				second, err := a.AcquireAll(set.Context(), y, pgbaton.Name("another"))
				if err == nil {
					err = second.Release(ctx)
				}
				return errors.Join(err, set.Release(ctx))
			},
			nested(lock, func(ctx context.Context) (*pgbaton.Lock, error) { return b.Acquire(ctx, z) })))
	})
	t.Run("AcquireAllWithOneKeyTaken", func(t *testing.T) {
		t.Parallel()
		// Clients of its own: among many waits the set would give way to others for a while, with x.
		sets, locks, own := pair(t)
		x, y := pgbaton.ID(1_000_001), pgbaton.ID(1_000_002) // in the order in which they are taken
		lock, err := locks.Acquire(ctx, y)
		require.NoError(t, err)
		victim(t, cross(t,
			func() error {
				bounded, cancel := context.WithTimeout(ctx, testkit.Patience)
				defer cancel()
				set, err := sets.AcquireAll(bounded, x, y)
				if err == nil {
					err = set.Release(ctx)
				}
				return err
			},
			func() error {
				queued(t, own, y) // so it has x
				return nested(lock, func(ctx context.Context) (*pgbaton.Lock, error) { return locks.Acquire(ctx, x) })()
			}))
	})
	t.Run("NoCycle", func(t *testing.T) {
		t.Parallel()
		x, y, z := ringKey(t.Name(), 1), ringKey(t.Name(), 2), ringKey(t.Name(), 3)
		last, err := a.Acquire(ctx, x)
		require.NoError(t, err)
		second, err := b.Acquire(ctx, y)
		require.NoError(t, err)
		third, err := a.Acquire(ctx, z)
		require.NoError(t, err)
		timer := time.AfterFunc(3*time.Second, func() { _ = last.Release(ctx) })
		defer timer.Stop()
		outcomes := cross(t,
			nested(second, func(ctx context.Context) (*pgbaton.Lock, error) { return b.Acquire(ctx, x) }),
			nested(third, func(ctx context.Context) (*pgbaton.Lock, error) { return a.Acquire(ctx, y) }))
		require.NoError(t, errors.Join(outcomes[0].err, outcomes[1].err))
	})
}

// queued blocks until a session waits for the key.
func queued(t *testing.T, dsn string, key pgbaton.Key) {
	t.Helper()
	conn := testkit.Connect(t, dsn)
	var id int64
	if _, err := fmt.Sscanf(key.String(), "id:%d", &id); err != nil {
		name, err := strconv.Unquote(key.String())
		require.NoError(t, err)
		id = testkit.Value[int64](t, conn, "SELECT pgbaton.key($1)", name)
	}
	testkit.WaitFor(t, conn, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND NOT granted
		AND (classid::bigint << 32 | objid::bigint) = $1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`, id)
}

// Waits of less than a second leave no trace, and longer ones none afterwards.
func TestDeadlock_LeavesNoRows(t *testing.T) {
	t.Parallel()
	for short, attempts := 0, 0; short < 3; attempts++ {
		require.Less(t, attempts, 100, "each wait took a second")
		w := newWatchedWait(t) // what an attempt that took too long publishes late is not seen by the next
		before := w.changes()
		if w.wait(func() { queued(t, w.dsn, pgbaton.Name("taken")) }) < time.Second {
			short++
			require.Equal(t, before, w.changes(), "a short wait")
		}
	}
	w := newWatchedWait(t)
	before := w.changes()
	w.wait(func() {
		testkit.WaitFor(t, w.conn, "SELECT EXISTS (SELECT FROM pgbaton.registry WHERE kind = 'watched')")
	})
	require.Equal(t, before+1, w.changes(), "one long wait")
	require.Eventually(t, func() bool {
		return testkit.Value[int](t, w.conn, "SELECT count(*)::int FROM pgbaton.registry WHERE kind = 'watched'") == 0
	}, testkit.Patience, 10*time.Millisecond)
}

// watchedWait lets one client wait for a key of another, and sees what is published of it.
type watchedWait struct {
	t    *testing.T
	a, b *pgbaton.Client
	dsn  string
	conn *pgx.Conn
}

func newWatchedWait(t *testing.T) *watchedWait {
	t.Helper()
	a, b, dsn := pair(t)
	w := &watchedWait{t, a, b, dsn, testkit.Connect(t, dsn)}
	testkit.Exec(t, w.conn, `CREATE SEQUENCE public.watched;
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('public.watched'); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT ON pgbaton.registry FOR EACH ROW WHEN (NEW.kind = 'watched') EXECUTE FUNCTION public.note()`)
	return w
}

// changes returns how many rows of waits have been written.
func (w *watchedWait) changes() int64 {
	w.t.Helper()
	return testkit.Value[int64](w.t, w.conn, "SELECT last_value FROM public.watched WHERE is_called UNION ALL SELECT 0 ORDER BY 1 DESC LIMIT 1")
}

// wait has one client wait until the other one releases, and returns how long it took.
func (w *watchedWait) wait(until func()) (took time.Duration) {
	t, ctx := w.t, testkit.Context(w.t)
	t.Helper()
	lock, err := w.a.Acquire(ctx, pgbaton.Name("taken"))
	require.NoError(t, err)
	outer, err := w.b.Acquire(ctx, pgbaton.Name("outer"))
	require.NoError(t, err)
	began := time.Now()
	inner := background(t, func() (*pgbaton.Lock, error) { return w.b.Acquire(outer.Context(), pgbaton.Name("taken")) })
	until()
	require.NoError(t, lock.Release(ctx))
	require.NoError(t, (<-inner).Release(ctx))
	took = time.Since(began)
	require.NoError(t, outer.Release(ctx))
	return took
}
