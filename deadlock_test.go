package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// detection bounds the time from the wait that closes a cycle to its end. The promise is 2 s; the rest is for a
// busy machine.
const detection = 3 * time.Second

// outcome is how a wait of a ring ended.
type outcome struct {
	err  error
	took time.Duration
}

// ring lets each of n goroutines, which take turns with the clients, hold one key and wait for the next one's. It
// returns how the waits ended; each releases what it holds when it has what it waits for, or not.
func ring(t *testing.T, name string, n int, clients ...*pgbaton.Client) []outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
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
			inner, stop := context.WithTimeout(lock.Context(), 20*time.Second)
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

// victim requires that exactly one of the waits ended as a deadlock, in time, and returns what its error says.
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
		require.Less(t, o.took, detection)
		t.Logf("found after %v: %v", o.took, o.err)
		found = o.err
	}
	require.Error(t, found, "no victim")
	return found.Error()
}

func TestDeadlock_Rings(t *testing.T) {
	t.Parallel()
	a, b, dsn := pair(t)
	small := newClient(t, dsn, &pgbaton.Config{MaxConns: 2})
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
	a, b, _ := pair(t)
	ctx := t.Context()

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
			inner, cancel := context.WithTimeout(lock.Context(), 20*time.Second)
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
		time.Sleep(100 * time.Millisecond) // it stands before the reader
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
		time.Sleep(100 * time.Millisecond) // it stands before the second reader
		began := time.Now()
		_, err = a.AcquireShared(lock.Context(), x)
		took := time.Since(began)
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
		later := func(d time.Duration, f func() error) func() error {
			return func() error {
				time.Sleep(d)
				return f()
			}
		}
		const gap = 3 * time.Millisecond // so that the one through which both go is neither the oldest nor the youngest
		victim(t, cross(t,
			nested(first, func(ctx context.Context) (*pgbaton.Lock, error) { return a.Acquire(ctx, y) }),
			later(gap, nested(both, func(ctx context.Context) (*pgbaton.Lock, error) { return a.Acquire(ctx, x) })),
			later(2*gap, nested(second, func(ctx context.Context) (*pgbaton.Lock, error) { return b.Acquire(ctx, y) }))))
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
		x, y := pgbaton.ID(1_000_001), pgbaton.ID(1_000_002) // in the order in which they are taken
		lock, err := b.Acquire(ctx, y)
		require.NoError(t, err)
		victim(t, cross(t,
			func() error {
				bounded, cancel := context.WithTimeout(ctx, 20*time.Second)
				defer cancel()
				set, err := a.AcquireAll(bounded, x, y)
				if err == nil {
					err = set.Release(ctx)
				}
				return err
			},
			func() error {
				time.Sleep(100 * time.Millisecond) // it has x by now
				return nested(lock, func(ctx context.Context) (*pgbaton.Lock, error) { return b.Acquire(ctx, x) })()
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

// Waits of less than a second leave no trace, and longer ones none afterwards.
func TestDeadlock_LeavesNoRows(t *testing.T) {
	t.Parallel()
	a, b, dsn := pair(t)
	ctx := t.Context()
	conn := dbtest.Connect(t, dsn)
	changes := func() int64 {
		_, err := conn.Exec(ctx, "SELECT pg_stat_clear_snapshot()")
		require.NoError(t, err)
		return dbtest.Value[int64](t, conn, "SELECT last_value FROM pgbaton.wait_id_seq WHERE is_called UNION ALL SELECT 0 ORDER BY 1 DESC LIMIT 1")
	}
	wait := func(d time.Duration) {
		lock, err := a.Acquire(ctx, pgbaton.Name("taken"))
		require.NoError(t, err)
		outer, err := b.Acquire(ctx, pgbaton.Name("outer"))
		require.NoError(t, err)
		inner := background(t, func() (*pgbaton.Lock, error) { return b.Acquire(outer.Context(), pgbaton.Name("taken")) })
		time.Sleep(d)
		require.NoError(t, lock.Release(ctx))
		require.NoError(t, (<-inner).Release(ctx))
		require.NoError(t, outer.Release(ctx))
	}
	for range 3 {
		wait(600 * time.Millisecond)
	}
	require.Zero(t, changes(), "short waits")
	wait(1500 * time.Millisecond)
	require.Equal(t, int64(1), changes(), "one long wait")
	require.Eventually(t, func() bool {
		return dbtest.Value[int](t, conn, "SELECT count(*)::int FROM pgbaton.wait") == 0
	}, 5*time.Second, 10*time.Millisecond)
}
