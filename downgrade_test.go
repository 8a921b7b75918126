package pgbaton_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

func TestDowngrade(t *testing.T) {
	t.Parallel()
	ctx := dbtest.Context(t)
	a, b, dsn := pair(t)
	admin := dbtest.Connect(t, dsn)

	for name, key := range map[string]pgbaton.Key{"Name": pgbaton.Name("down"), "Pair": pgbaton.Pair(7, -8)} {
		t.Run("SharesWithOthers/"+name, func(t *testing.T) {
			t.Parallel()
			lock, err := a.Acquire(ctx, key)
			require.NoError(t, err)
			token := lock.Token()
			require.NoError(t, lock.Downgrade(ctx))
			require.NoError(t, lock.Downgrade(ctx), "it is shared")
			require.Equal(t, token, lock.Token())
			for _, client := range []*pgbaton.Client{a, b} {
				reader, err := client.TryAcquireShared(ctx, key)
				require.NoError(t, err)
				require.Greater(t, reader.Token(), token)
				require.NoError(t, reader.Release(ctx))
				_, err = client.TryAcquire(ctx, key)
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			}
			require.NoError(t, lock.Release(ctx))
			require.ErrorIs(t, lock.Downgrade(ctx), pgbaton.ErrNotHeld)
			writer, err := b.Acquire(ctx, key)
			require.NoError(t, err)
			require.NoError(t, writer.Release(ctx))
		})
	}
	t.Run("IsFencedAsShared", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Name("fenced")
		lock, err := a.Acquire(ctx, key)
		require.NoError(t, err)
		require.NoError(t, lock.Downgrade(ctx))
		conn := dbtest.Connect(t, dsn)
		tx, err := conn.Begin(ctx)
		require.NoError(t, err)
		require.NoError(t, pgbaton.AssertHeld(ctx, tx, lock))
		require.NoError(t, tx.Commit(ctx))
		require.Zero(t, dbtest.Value[int](t, conn, "SELECT count(*)::int FROM pgbaton.fence"), "a shared token is not recorded")
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("LetsNoWriterInBetween", func(t *testing.T) {
		for range 20 {
			key := pgbaton.Name("between")
			lock, err := a.Acquire(ctx, key)
			require.NoError(t, err)
			writer := background(t, func() (*pgbaton.Lock, error) { return b.Acquire(ctx, key) })
			waiting(t, admin)
			require.NoError(t, lock.Downgrade(ctx))
			select {
			case <-writer:
				require.Fail(t, "a writer was granted the key while it is shared")
			case <-time.After(20 * time.Millisecond):
			}
			require.NoError(t, lock.Release(ctx))
			next := <-writer
			require.Greater(t, next.Token(), lock.Token())
			require.NoError(t, next.Release(ctx))
		}
	})
	t.Run("LetsReadersIn", func(t *testing.T) {
		key := pgbaton.Name("readers")
		lock, err := a.Acquire(ctx, key)
		require.NoError(t, err)
		own := background(t, func() (*pgbaton.Lock, error) { return a.AcquireShared(ctx, key) })
		others := background(t, func() (*pgbaton.Lock, error) { return b.AcquireShared(ctx, key) })
		waiting(t, admin)
		require.NoError(t, lock.Downgrade(ctx))
		for _, readers := range []<-chan *pgbaton.Lock{own, others} {
			reader := <-readers
			require.NoError(t, lock.Err())
			require.NoError(t, reader.Release(ctx))
		}
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("OfALostLock", func(t *testing.T) {
		dsn := dbtest.Migrated(t)
		client := newClient(t, dbtest.Named(t, dsn, "loser"), nil)
		lock, err := client.Acquire(ctx, pgbaton.Name("lost"))
		require.NoError(t, err)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, lock.Downgrade(ended), context.Canceled)
		require.NoError(t, lock.Err())
		dbtest.Value[int64](t, dbtest.Connect(t, dsn),
			"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'loser' AND datname = current_database()")
		<-lock.Done()
		require.ErrorIs(t, lock.Downgrade(ctx), pgbaton.ErrLost)
	})
}
