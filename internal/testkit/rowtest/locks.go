package rowtest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// key is a lock of the bundle's own.
func (b *bundle) key() pgbaton.Key { return pgbaton.Name(b.table[0]) }

// locks are those that live in the transaction.
func (s *suite) locks(t *testing.T) {
	t.Helper()
	t.Run("AcquireTx/ExcludesOthers", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx, other := b.begin(t), b.begin(t)
		first, err := pgbaton.AcquireTx(ctx, tx, b.key())
		require.NoError(t, err)
		_, err = pgbaton.AcquireTx(ctx, other, b.key(), &pgbaton.LockOpts{Wait: pgbaton.NoWait})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		_, err = pgbaton.AcquireTx(ctx, other, b.key(), &pgbaton.LockOpts{Wait: pgbaton.NoWait, Shared: true})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err = pgbaton.AcquireTx(short, other, b.key())
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, tx.Rollback(ctx))
		second, err := pgbaton.AcquireTx(ctx, other, b.key(), &pgbaton.LockOpts{Shared: true})
		require.NoError(t, err)
		require.Greater(t, second, first)
		require.NoError(t, other.Commit(ctx))
	})
	t.Run("AcquireTx/TakesDistantDeadlines", func(t *testing.T) {
		ctx, b := s.setup(t)
		for _, far := range []time.Duration{30 * 24 * time.Hour, 1 << 62} {
			holder := b.hold(ctx, t, sprintf("SELECT pg_advisory_xact_lock(pgbaton.key('%s'))", b.table[0]))
			b.background(t, func() {
				b.awaitWaiter(ctx, t, holder)
				_ = holder.Rollback(ctx)
			})
			long, cancel := context.WithTimeout(context.WithoutCancel(ctx), far)
			defer cancel()
			tx := b.begin(t)
			_, err := pgbaton.AcquireTx(long, tx, b.key())
			require.NoError(t, err)
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("AcquireTx/EndsByTheSessionsTimeouts", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, sprintf("SELECT pg_advisory_xact_lock(pgbaton.key('%s'))", b.table[0]))
		for _, setting := range []string{"lock_timeout", "statement_timeout"} {
			tx := b.begin(t)
			exec(ctx, t, tx, "SET LOCAL "+setting+" = '50ms'")
			_, err := pgbaton.AcquireTx(context.WithoutCancel(ctx), tx, b.key())
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired, setting)
			require.NotErrorIs(t, err, context.DeadlineExceeded, setting)
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("AcquireTx/SaysThatTheTransactionIsReadOnly", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx := b.begin(t)
		exec(ctx, t, tx, "SET TRANSACTION READ ONLY")
		_, err := pgbaton.AcquireTx(ctx, tx, b.key())
		require.ErrorContains(t, err, "the transaction is read-only")
		_, err = pgbaton.AcquireTx(ctx, tx, b.key(), &pgbaton.LockOpts{Wait: pgbaton.NoWait, Shared: true})
		require.ErrorContains(t, err, "the transaction is read-only")
		require.Equal(t, "on", queryString(ctx, t, tx, "SHOW transaction_read_only"), "it goes on")
		require.ErrorContains(t, pgbaton.Fence(ctx, tx, b.table[0], 1), "the transaction is read-only")
	})
	t.Run("AcquireTx/AllowsStaleSnapshotIfAsked", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx := b.begin(t)
		exec(ctx, t, tx, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
		_, err := pgbaton.AcquireTx(ctx, tx, b.key())
		require.ErrorContains(t, err, "snapshot")
		_, err = pgbaton.AcquireTx(ctx, tx, b.key(), &pgbaton.LockOpts{StaleSnapshot: true})
		require.NoError(t, err)
	})
}

// fences are what a holder shows to the transaction.
func (s *suite) fences(t *testing.T) {
	t.Helper()
	t.Run("Fence/TellsStaleToken", func(t *testing.T) {
		ctx, b := s.setup(t)
		for _, opts := range []*pgbaton.LockOpts{nil, {Shared: true}} {
			tx := b.begin(t)
			require.NoError(t, pgbaton.Fence(ctx, tx, b.table[0], 7))
			require.NoError(t, pgbaton.Fence(ctx, tx, b.table[0], 7, opts))
			requireStale(t, pgbaton.Fence(ctx, tx, b.table[0], 6, opts), pgbaton.StaleTokenError{Resource: b.table[0], Token: 6, Newest: 7})
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("Assert/TellsStaleToken", func(t *testing.T) {
		ctx, b := s.setup(t)
		lock, err := s.client.Acquire(ctx, b.key())
		require.NoError(t, err)
		tx := b.begin(t)
		require.NoError(t, lock.Assert(ctx, tx))
		require.NoError(t, tx.Commit(ctx))
		b.exec(ctx, t, "UPDATE pgbaton.fence SET token = token + 1 WHERE resource LIKE 'pgbaton:key:%' AND token = "+sprintf("%d", lock.Token()))
		err = lock.Assert(ctx, b.begin(t))
		require.ErrorIs(t, err, pgbaton.ErrStaleToken)
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("Assert/HoldsThePermit", func(t *testing.T) {
		ctx, b := s.setup(t)
		semaphore, err := s.client.Semaphore(ctx, b.table[0], 2)
		require.NoError(t, err)
		permit, err := semaphore.Acquire(ctx, 2)
		require.NoError(t, err)
		tx := b.begin(t)
		require.NoError(t, permit.Assert(ctx, tx))
		require.NoError(t, tx.Commit(ctx))
		require.NoError(t, permit.Release(ctx))
		require.ErrorIs(t, permit.Assert(ctx, b.begin(t)), pgbaton.ErrNotHeld)
	})
	t.Run("Translate/TellsGuardsError", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ADD fence bigint NOT NULL DEFAULT 9")
		b.exec(ctx, t, "CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON "+b.name()+
			" FOR EACH ROW EXECUTE FUNCTION pgbaton.fence_guard()")
		write := func(q pgbaton.Querier) error {
			rows, err := q.Query(ctx, "UPDATE "+b.name()+" SET fence = 4 WHERE id = 1")
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}
		err := write(b.begin(t))
		require.NotErrorIs(t, err, pgbaton.ErrStaleToken)
		requireStale(t, pgbaton.Translate(err), pgbaton.StaleTokenError{Resource: b.name(), Token: 4, Newest: 9})
		require.ErrorIs(t, pgbaton.Translate(err), err)
		err = s.way.InTx(ctx, nil, func(_ context.Context, tx pgbaton.Tx) error { return write(tx) })
		requireStale(t, err, pgbaton.StaleTokenError{Resource: b.name(), Token: 4, Newest: 9})
		require.NoError(t, pgbaton.Translate(nil))
	})
}

func requireStale(t *testing.T, err error, want pgbaton.StaleTokenError) {
	t.Helper()
	require.ErrorIs(t, err, pgbaton.ErrStaleToken)
	var stale *pgbaton.StaleTokenError
	require.ErrorAs(t, err, &stale)
	require.Equal(t, want, *stale)
}
