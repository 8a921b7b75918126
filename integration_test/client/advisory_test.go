package client

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// pair is two clients of one database, as two services have them.
func pair(t *testing.T) (a, b *pgbaton.Client, dsn string) {
	t.Helper()
	dsn = testkit.Migrated(t)
	return testclient.New(t, dsn, nil), testclient.New(t, dsn, nil), dsn
}

// background waits in a goroutine for a lock and delivers it.
func background(t *testing.T, acquire func() (*pgbaton.Lock, error)) <-chan *pgbaton.Lock {
	t.Helper()
	got := make(chan *pgbaton.Lock, 1)
	go func() {
		lock, err := acquire()
		if err != nil {
			t.Error(err)
		}
		got <- lock
	}()
	return got
}

// waiting blocks until a session of the database waits for an advisory lock.
func waiting(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	require.Eventually(t, func() bool { return waits(conn) }, testkit.Patience, 2*time.Millisecond)
}

func waits(conn *pgx.Conn) bool {
	var waits bool
	err := conn.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_locks
		WHERE locktype = 'advisory' AND NOT granted
		  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits)
	return err == nil && waits
}

func TestAcquire(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	admin := testkit.Connect(t, dsn)

	t.Run("ExcludesWithinAClientAndBetweenClients", func(t *testing.T) {
		t.Parallel()
		for _, key := range []pgbaton.Key{pgbaton.Name("x"), pgbaton.ID(-7), pgbaton.Pair(7, -7)} {
			lock, err := a.Acquire(ctx, key)
			require.NoError(t, err)
			for _, client := range []*pgbaton.Client{a, b} {
				_, err = client.TryAcquire(ctx, key)
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				require.ErrorContains(t, err, key.String())
				_, err = client.TryAcquireShared(ctx, key)
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			}
			require.NoError(t, lock.Release(ctx))
			lock, err = b.TryAcquire(ctx, key)
			require.NoError(t, err)
			require.NoError(t, lock.Release(ctx))
		}
	})
	t.Run("SharesAndExcludesTheExclusive", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Name("shared")
		var locks []*pgbaton.Lock
		for _, client := range []*pgbaton.Client{a, a, b} {
			lock, err := client.AcquireShared(ctx, key)
			require.NoError(t, err)
			locks = append(locks, lock)
		}
		for _, client := range []*pgbaton.Client{a, b} {
			_, err := client.TryAcquire(ctx, key)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		}
		writer := background(t, func() (*pgbaton.Lock, error) { return a.Acquire(ctx, key) })
		var newest pgbaton.Token
		for _, lock := range locks {
			newest = max(newest, lock.Token())
			require.NoError(t, lock.Release(ctx))
		}
		lock := <-writer
		require.Greater(t, lock.Token(), newest)
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("HandsOverWithinAndBetweenClientsWithRisingTokens", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Name("hand-over")
		var last pgbaton.Token
		var wg sync.WaitGroup
		for i := range 32 {
			client := a
			if i%2 == 0 {
				client = b
			}
			wg.Go(func() {
				for range 40 {
					lock, err := client.Acquire(ctx, key)
					if err != nil {
						t.Error(err)
						return
					}
					if lock.Token() <= last || lock.Token() >= 1<<53 {
						t.Errorf("token %d after %d", lock.Token(), last)
					}
					last = lock.Token()
					if err := lock.Release(ctx); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	})
	t.Run("IsTheSameLockAsInSQL", func(t *testing.T) {
		t.Parallel()
		conn := testkit.Connect(t, dsn)
		lock, err := a.Acquire(ctx, pgbaton.Name("from sql"))
		require.NoError(t, err)
		var free bool
		require.NoError(t, conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(pgbaton.key('from sql'))").Scan(&free))
		require.False(t, free)
		require.NoError(t, lock.Release(ctx))
		require.NoError(t, conn.QueryRow(ctx, "SELECT pg_try_advisory_lock(pgbaton.key('from sql'))").Scan(&free))
		require.True(t, free)
		_, err = a.TryAcquire(ctx, pgbaton.Name("from sql"))
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	})
	t.Run("EndsWithItsContext", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Name("context")
		lock, err := a.Acquire(ctx, key)
		require.NoError(t, err)
		for _, client := range []*pgbaton.Client{a, b} {
			short, cancel := context.WithTimeout(ctx, 60*time.Millisecond)
			_, err = client.Acquire(short, key)
			late := time.Since(deadline(short))
			cancel()
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			testkit.Figure(t, "a wait for a lock returned %v after its context had ended", late)
		}
		gone, cancel := context.WithCancelCause(ctx)
		cancel(errors.New("no more interest"))
		_, err = b.Acquire(gone, key)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "no more interest")
		require.NoError(t, lock.Release(ctx))
		lock, err = b.Acquire(ctx, key) // nothing was left in the queue
		require.NoError(t, err)
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("GivesTheLockToWhoWaitsOnTheServer", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.ID(4711)
		lock, err := a.Acquire(ctx, key)
		require.NoError(t, err)
		waiter := background(t, func() (*pgbaton.Lock, error) { return b.Acquire(ctx, key) })
		waiting(t, admin)
		require.NoError(t, lock.Release(ctx))
		require.NoError(t, (<-waiter).Release(ctx))
	})
	t.Run("RefusesBadKeys", func(t *testing.T) {
		t.Parallel()
		for name, key := range map[string]pgbaton.Key{
			`""`:       pgbaton.Name(""),
			"513":      pgbaton.Name(strings.Repeat("x", 513)),
			"UTF-8":    pgbaton.Name("a\xffb"),
			"NUL":      pgbaton.Name("a\x00b"),
			"zero Key": {},
		} {
			_, err := a.Acquire(ctx, key)
			require.ErrorContains(t, err, name)
		}
	})
	t.Run("RefusesMoreThanMaxHeld", func(t *testing.T) {
		t.Parallel()
		small := testclient.New(t, dsn, &pgbaton.Config{MaxHeld: 2})
		first, err := small.Acquire(ctx, pgbaton.Name("held 1"))
		require.NoError(t, err)
		_, err = small.Acquire(ctx, pgbaton.Name("held 2"))
		require.NoError(t, err)
		_, err = small.Acquire(ctx, pgbaton.Name("held 3"))
		require.ErrorIs(t, err, pgbaton.ErrTooManyLocks)
		require.NoError(t, first.Release(ctx))
		_, err = small.Acquire(ctx, pgbaton.Name("held 3"))
		require.NoError(t, err)
	})
}

func deadline(ctx context.Context) time.Time {
	at, _ := ctx.Deadline()
	return at
}

func TestRelease(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	admin := testkit.Connect(t, dsn)

	t.Run("IsSafeTwiceAndAfterItsContext", func(t *testing.T) {
		t.Parallel()
		over, cancel := context.WithCancel(ctx)
		lock, err := a.Acquire(over, pgbaton.Name("twice"))
		require.NoError(t, err)
		cancel()
		require.NoError(t, lock.Err())
		require.NoError(t, lock.Release(over))
		require.NoError(t, lock.Release(over))
		other, err := b.TryAcquire(ctx, pgbaton.Name("twice"))
		require.NoError(t, err)
		require.NoError(t, lock.Release(ctx)) // not the other's
		_, err = a.TryAcquire(ctx, pgbaton.Name("twice"))
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.NoError(t, other.Release(ctx))
	})
	t.Run("EndsTheLocksContext", func(t *testing.T) {
		t.Parallel()
		type keyType struct{}
		lock, err := a.Acquire(context.WithValue(ctx, keyType{}, "value"), pgbaton.Name("ended"))
		require.NoError(t, err)
		require.Equal(t, "value", lock.Context().Value(keyType{}))
		require.NoError(t, lock.Context().Err())
		require.NoError(t, lock.Err())
		require.NoError(t, lock.Release(ctx))
		<-lock.Done()
		<-lock.Context().Done()
		require.ErrorIs(t, context.Cause(lock.Context()), pgbaton.ErrNotHeld)
		require.ErrorIs(t, lock.Err(), pgbaton.ErrNotHeld)
		require.NotErrorIs(t, lock.Err(), pgbaton.ErrLost)
	})
	t.Run("TellsOfLoss", func(t *testing.T) {
		t.Parallel()
		mine := testclient.New(t, testkit.Named(t, dsn, "loses"), nil)
		lock, err := mine.Acquire(ctx, pgbaton.Name("lost"))
		require.NoError(t, err)
		shared, err := mine.AcquireShared(ctx, pgbaton.Name("lost too"))
		require.NoError(t, err)
		_, err = admin.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'loses' AND datname = current_database()")
		require.NoError(t, err)
		<-lock.Done()
		<-shared.Context().Done()
		require.ErrorIs(t, lock.Err(), pgbaton.ErrLost)
		require.Equal(t, "terminated by an operator or by the server's shutdown", pgbaton.LossReasonOf(lock.Err()))
		require.Equal(t, "terminated by an operator or by the server's shutdown", pgbaton.LossReasonOf(context.Cause(shared.Context())))
		require.ErrorIs(t, context.Cause(shared.Context()), pgbaton.ErrLost)
		require.ErrorIs(t, lock.Release(ctx), pgbaton.ErrLost)
		require.ErrorIs(t, lock.Release(ctx), pgbaton.ErrLost)
		again, err := mine.Acquire(ctx, pgbaton.Name("lost")) // the connection comes back by itself
		require.NoError(t, err)
		require.Greater(t, again.Token(), lock.Token())
		require.NoError(t, again.Release(ctx))
	})
}

// TestTokensNeverGoBack restarts the sequence under a live client.
func TestTokensNeverGoBack(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	admin := testkit.Connect(t, dsn)
	before, err := a.Acquire(ctx, pgbaton.Name("before"))
	require.NoError(t, err)
	newest := before.Token()
	for range 3 {
		_, err = admin.Exec(ctx, "ALTER SEQUENCE pgbaton.token RESTART")
		require.NoError(t, err)
		for _, client := range []*pgbaton.Client{a, b} { // b has never drawn
			lock, err := client.Acquire(ctx, pgbaton.Name("after"))
			require.NoError(t, err)
			require.Greater(t, lock.Token(), newest)
			newest = lock.Token()
			require.NoError(t, lock.Release(ctx))
		}
	}
	require.Equal(t, "token sequence went back", pgbaton.LossReasonOf(before.Err()))
}

func TestDo(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	admin := testkit.Connect(t, dsn)

	t.Run("HoldsWhileItRuns", func(t *testing.T) {
		t.Parallel()
		failure := errors.New("fn failed")
		var inner context.Context
		err := a.Do(ctx, pgbaton.Name("do"), func(ctx context.Context, lock *pgbaton.Lock) error {
			inner = ctx
			require.NoError(t, lock.Err())
			_, err := b.TryAcquire(ctx, pgbaton.Name("do"))
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			return failure
		})
		require.ErrorIs(t, err, failure)
		require.Error(t, inner.Err())
		require.NoError(t, b.Do(ctx, pgbaton.Name("do"), func(context.Context, *pgbaton.Lock) error { return nil }))
	})
	t.Run("ReleasesOnPanic", func(t *testing.T) {
		t.Parallel()
		require.Panics(t, func() {
			_ = a.Do(ctx, pgbaton.Name("panic"), func(context.Context, *pgbaton.Lock) error { panic("fn") })
		})
		lock, err := b.TryAcquire(ctx, pgbaton.Name("panic"))
		require.NoError(t, err)
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("EndsTheContextOnLoss", func(t *testing.T) {
		t.Parallel()
		mine := testclient.New(t, testkit.Named(t, dsn, "do-loses"), nil)
		err := mine.Do(ctx, pgbaton.Name("do loses"), func(ctx context.Context, _ *pgbaton.Lock) error {
			_, err := admin.Exec(t.Context(),
				"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'do-loses' AND datname = current_database()")
			require.NoError(t, err)
			<-ctx.Done()
			require.ErrorIs(t, context.Cause(ctx), pgbaton.ErrLost)
			return nil
		})
		require.ErrorIs(t, err, pgbaton.ErrLost)
	})
}
