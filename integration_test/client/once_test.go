package client

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func TestOnce(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	never := func(context.Context, *pgbaton.Lock) error { panic("not due") }

	t.Run("OncePerWindow", func(t *testing.T) {
		t.Parallel()
		const window, short = time.Hour, 400 * time.Millisecond
		key := "window"
		var token pgbaton.Token
		began := time.Now()
		require.NoError(t, a.Once(ctx, key, window, func(ctx context.Context, lock *pgbaton.Lock) error {
			require.NoError(t, ctx.Err())
			require.NoError(t, lock.Err())
			token = lock.Token()
			return nil
		}))
		for _, client := range []*pgbaton.Client{a, b} {
			err := client.Once(ctx, key, window, never)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			var notDue *pgbaton.NotDueError
			require.ErrorAs(t, err, &notDue)
			require.Equal(t, key, notDue.Name)
			require.Equal(t, window, notDue.Next.Sub(notDue.Last))
			require.False(t, notDue.Running)
			require.ErrorContains(t, err, "the next may at")
		}
		require.Eventually(t, func() bool {
			return b.Once(ctx, key, short, func(_ context.Context, lock *pgbaton.Lock) error {
				require.Greater(t, lock.Token(), token)
				return nil
			}) == nil
		}, testkit.Patience, 10*time.Millisecond)
		require.GreaterOrEqual(t, time.Since(began), short)
		require.ErrorIs(t, a.Once(ctx, key, window, never), pgbaton.ErrNotAcquired)
	})

	t.Run("Failure", func(t *testing.T) {
		t.Parallel()
		broken := errors.New("broken")
		key := "fails"
		err := a.Once(ctx, key, time.Hour, func(context.Context, *pgbaton.Lock) error { return broken })
		require.ErrorIs(t, err, broken)
		require.ErrorIs(t, b.Once(ctx, key, time.Hour, never), pgbaton.ErrNotAcquired, "a run that failed was one")

		key = "panics"
		require.PanicsWithValue(t, "own", func() {
			_ = a.Once(ctx, key, time.Hour, func(context.Context, *pgbaton.Lock) error { panic("own") })
		})
		require.ErrorIs(t, b.Once(ctx, key, time.Hour, never), pgbaton.ErrNotAcquired)
		lock, err := b.TryAcquire(ctx, pgbaton.Name(key))
		require.NoError(t, err, "the lock was released")
		require.NoError(t, lock.Release(ctx))
	})

	t.Run("LongerThanTheWindow", func(t *testing.T) {
		t.Parallel()
		key := "long"
		inside, leave, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			done <- a.Once(ctx, key, time.Hour, func(context.Context, *pgbaton.Lock) error {
				close(inside)
				<-leave
				return nil
			})
		}()
		soon(t, inside)
		time.Sleep(5 * time.Millisecond)
		err := b.Once(ctx, key, time.Millisecond, never)
		var notDue *pgbaton.NotDueError
		require.ErrorAs(t, err, &notDue)
		require.True(t, notDue.Running)
		require.ErrorContains(t, err, "somebody else is running it")
		close(leave)
		require.NoError(t, soon(t, done))
		runs(t, b, key, time.Millisecond)
	})

	t.Run("BadInput", func(t *testing.T) {
		t.Parallel()
		require.Error(t, a.Once(ctx, "", time.Second, never))
		for _, window := range []time.Duration{0, -time.Second} {
			require.ErrorContains(t, a.Once(ctx, "x", window, never), "the window is")
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, a.Once(ended, "x", time.Second, never), context.Canceled)
		runs(t, a, "extremes", time.Nanosecond)
		runs(t, a, "extremes", time.Nanosecond)
		err := a.Once(ctx, "extremes", 1<<63-1, never)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	})
}

// runs calls Once until it has run: with a short window, a run that a busy machine begins late is given up.
func runs(t *testing.T, client *pgbaton.Client, name string, window time.Duration) {
	t.Helper()
	var err error
	require.Eventually(t, func() bool {
		err = client.Once(t.Context(), name, window, func(context.Context, *pgbaton.Lock) error { return nil })
		return err == nil
	}, testkit.Patience, time.Millisecond, "%v", err)
}

// The lock is lost during the run: fn is told, and the error says so.
func TestOnce_Lost(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	control := testkit.Connect(t, dsn)
	client := testclient.New(t, dsn, nil)
	err := client.Once(ctx, "lost", time.Hour, func(ctx context.Context, _ *pgbaton.Lock) error {
		testkit.Value[bool](t, control, `SELECT pg_terminate_backend(pid) FROM pg_locks
			WHERE locktype = 'advisory' AND objid::bigint = pgbaton.key('lost') & 4294967295 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		<-ctx.Done()
		require.ErrorIs(t, context.Cause(ctx), pgbaton.ErrLost)
		return nil
	})
	require.ErrorIs(t, err, pgbaton.ErrLost)
}

// The lock is lost while the run is being recorded: fn does not run, though the run is recorded.
func TestOnce_LostBeforeTheRun(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	control, other := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	client := testclient.New(t, dsn, nil)
	const window = time.Millisecond
	runs(t, client, "early", window)
	for attempt := range 10 {
		testkit.Exec(t, other, "BEGIN; SELECT FROM pgbaton.last_run FOR UPDATE")
		ran, done := false, make(chan error, 1)
		go func() {
			done <- client.Once(ctx, "early", window, func(context.Context, *pgbaton.Lock) error {
				ran = true
				return nil
			})
		}()
		testkit.WaitFor(t, control, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database "+
			"WHERE datname = current_database())) OR EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid')")
		testkit.Value[bool](t, control, `SELECT pg_terminate_backend(pid, 5000) FROM pg_locks
			WHERE locktype = 'advisory' AND objid::bigint = pgbaton.key('early') & 4294967295 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		testkit.Exec(t, other, "COMMIT")
		err := soon(t, done)
		require.False(t, ran)
		if errors.Is(err, pgbaton.ErrLost) {
			return
		}
		require.Error(t, err)
		t.Logf("attempt %d: %v", attempt, err) // a busy machine: the record was given up before the row was free
	}
	require.Fail(t, "the record was never made after the loss")
}

// Eight replicas call at every scheduled time, none at the same moment as another. By the database's clock no two runs
// begin within a window, however late a busy machine lets some call; and whatever is due is run.
func TestOnce_Replicas(t *testing.T) {
	t.Parallel()
	const (
		replicas = 8
		windows  = 4
		period   = 1500 * time.Millisecond
		window   = 900 * time.Millisecond
		skew     = 200 * time.Millisecond
	)
	dsn := testkit.Migrated(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	defer pool.Close()
	var mu sync.Mutex
	var began []time.Time
	start := time.Now().Add(time.Second)
	var wg sync.WaitGroup
	for replica := range replicas {
		client := testclient.New(t, dsn, nil)
		wg.Go(func() {
			for w := range windows {
				// Its clock is wrong by something else each time.
				late := skew * time.Duration((replica*5+w*3)%replicas) / replicas
				time.Sleep(time.Until(start.Add(time.Duration(w)*period + late)))
				err := client.Once(t.Context(), "job", window, func(ctx context.Context, _ *pgbaton.Lock) error {
					var at time.Time
					err := pool.QueryRow(ctx, "SELECT ran_at FROM pgbaton.last_run").Scan(&at)
					mu.Lock()
					defer mu.Unlock()
					began = append(began, at)
					return err
				})
				if err != nil && !errors.Is(err, pgbaton.ErrNotAcquired) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.NotEmpty(t, began)
	for i, at := range began[1:] {
		require.GreaterOrEqual(t, at.Sub(began[i]), window)
	}
}

// The contexts of a leader's func and of a run carry the lock: a wait in there that is part of a deadlock is seen.
func TestLeadAndOnce_Deadlock(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	for name, c := range map[string]struct {
		outer pgbaton.Key
		run   func(context.Context, func(context.Context) error) error
	}{
		"Lead": {pgbaton.Name("pgbaton/leader/x"), func(ctx context.Context, work func(context.Context) error) error {
			return a.Lead(ctx, "x", func(ctx context.Context, _ *pgbaton.Lock) error { return work(ctx) })
		}},
		"Once": {pgbaton.Name("job"), func(ctx context.Context, work func(context.Context) error) error {
			return a.Once(ctx, "job", time.Hour, func(ctx context.Context, _ *pgbaton.Lock) error { return work(ctx) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := pgbaton.Name("inner/" + name)
			ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
			defer cancel()
			over := errors.New("over")
			inner, err := b.Acquire(ctx, key)
			require.NoError(t, err)
			crossed := make(chan error, 1)
			var first error
			err = c.run(ctx, func(ctx context.Context) error {
				go func() {
					lock, err := b.Acquire(inner.Context(), c.outer)
					if err == nil {
						err = lock.Release(ctx)
					}
					crossed <- errors.Join(err, inner.Release(ctx))
				}()
				var lock *pgbaton.Lock
				if lock, first = a.Acquire(ctx, key); first == nil {
					first = lock.Release(ctx)
				}
				return over
			})
			require.ErrorIs(t, err, over)
			second := soon(t, crossed)
			require.NotEqual(t, errors.Is(first, pgbaton.ErrDeadlock), errors.Is(second, pgbaton.ErrDeadlock),
				"one of them ends: %v, %v", first, second)
		})
	}
}

// A run that failed is tried again in its window when the option says so; what became of it can be read, and forgotten.
func TestOnceWith(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	const key = "job"
	never := func(context.Context, *pgbaton.Lock) error { panic("not due") }
	retry, force := &pgbaton.LockOpts{RetryFailed: true}, &pgbaton.LockOpts{Force: true}

	_, err := a.LastRun(ctx, key)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	require.ErrorIs(t, a.ForgetRun(ctx, key), pgbaton.ErrNotFound)

	broken := errors.New("broken \x00\xff")
	var token pgbaton.Token
	require.ErrorIs(t, a.OnceWith(ctx, key, time.Hour, retry, func(ctx context.Context, lock *pgbaton.Lock) error {
		token = lock.Token()
		last, err := b.LastRun(ctx, key)
		require.NoError(t, err)
		require.Equal(t, token, last.Token)
		require.Zero(t, last.Ended, "it goes on")
		err = b.OnceWith(ctx, key, time.Hour, retry, never)
		var notDue *pgbaton.NotDueError
		require.ErrorAs(t, err, &notDue)
		require.True(t, notDue.Running)
		require.ErrorIs(t, b.OnceWith(ctx, key, time.Hour, force, never), pgbaton.ErrNotAcquired)
		return broken
	}), broken)
	last, err := b.LastRun(ctx, key)
	require.NoError(t, err)
	require.Equal(t, pgbaton.Run{
		Name: key, Token: token, Began: last.Began, Ended: last.Ended, Failed: true, Error: "broken ",
	}, last)
	require.False(t, last.Ended.Before(last.Began))
	require.ErrorIs(t, b.Once(ctx, key, time.Hour, never), pgbaton.ErrNotAcquired, "without the option it was the window's run")

	require.NoError(t, b.OnceWith(ctx, key, time.Hour, retry, func(context.Context, *pgbaton.Lock) error { return nil }))
	last, err = a.LastRun(ctx, key)
	require.NoError(t, err)
	require.False(t, last.Failed)
	require.Empty(t, last.Error)
	require.NotZero(t, last.Ended)
	require.ErrorIs(t, a.OnceWith(ctx, key, time.Hour, retry, never), pgbaton.ErrNotAcquired, "it has not failed")

	ran := 0
	count := func(context.Context, *pgbaton.Lock) error { ran++; return nil }
	require.NoError(t, a.OnceWith(ctx, key, time.Hour, force, count))
	require.ErrorIs(t, a.Once(ctx, key, time.Hour, never), pgbaton.ErrNotAcquired)
	require.NoError(t, a.ForgetRun(ctx, key))
	require.NoError(t, a.Once(ctx, key, time.Hour, count))
	require.Equal(t, 2, ran)

	require.PanicsWithValue(t, "own", func() {
		_ = a.OnceWith(ctx, key, time.Hour, force, func(context.Context, *pgbaton.Lock) error { panic("own") })
	})
	last, err = a.LastRun(ctx, key)
	require.NoError(t, err)
	require.True(t, last.Failed)
	require.NotZero(t, last.Ended)
}

// A run that claims the future holds nobody up.
func TestOnce_Future(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client := testclient.New(t, dsn, nil)
	nothing := func(context.Context, *pgbaton.Lock) error { return nil }
	require.NoError(t, client.Once(ctx, "future", time.Hour, nothing))
	require.ErrorIs(t, client.Once(ctx, "future", time.Hour, nothing), pgbaton.ErrNotAcquired)
	testkit.Run(t, dsn, "UPDATE pgbaton.last_run SET ran_at = ran_at + interval '10 years'")
	require.NoError(t, client.Once(ctx, "future", time.Hour, nothing))
}
