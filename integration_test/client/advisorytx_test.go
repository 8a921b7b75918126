package client

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// TestAcquireTx runs over both kinds of transaction.
func TestAcquireTx(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]func(t *testing.T, dsn string, level pgx.TxIsoLevel) pgbaton.Tx{
		"pgx.Tx": func(t *testing.T, dsn string, level pgx.TxIsoLevel) pgbaton.Tx {
			t.Helper()
			tx, err := testkit.Connect(t, dsn).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
			require.NoError(t, err)
			return tx
		},
		"sql.Tx": func(t *testing.T, dsn string, level pgx.TxIsoLevel) pgbaton.Tx {
			t.Helper()
			db, err := sql.Open("pgx", dsn)
			require.NoError(t, err)
			t.Cleanup(func() { _ = db.Close() })
			levels := map[pgx.TxIsoLevel]sql.IsolationLevel{
				pgx.ReadCommitted: sql.LevelReadCommitted, pgx.RepeatableRead: sql.LevelRepeatableRead, pgx.Serializable: sql.LevelSerializable,
			}
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: levels[level]})
			require.NoError(t, err)
			return pgbaton.SQLTx(tx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			testAcquireTx(t, testclient.New(t, dsn, nil), func(level pgx.TxIsoLevel) pgbaton.Tx { return begin(t, dsn, level) })
		})
	}
}

func testAcquireTx(t *testing.T, client *pgbaton.Client, begin func(pgx.TxIsoLevel) pgbaton.Tx) {
	t.Helper()
	ctx := testkit.Context(t)
	key := pgbaton.Name("in a transaction")

	// It excludes clients and other transactions, and ends with the transaction.
	tx, other := begin(pgx.ReadCommitted), begin(pgx.ReadCommitted)
	before, err := client.Acquire(ctx, key)
	require.NoError(t, err)
	_, err = pgbaton.AcquireTx(ctx, tx, key, &pgbaton.LockOpts{Wait: pgbaton.NoWait})
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, before.Release(ctx))
	token, err := pgbaton.AcquireTx(ctx, tx, key)
	require.NoError(t, err)
	require.Greater(t, token, before.Token())
	_, err = client.TryAcquire(ctx, key)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	_, err = pgbaton.AcquireTx(ctx, other, key, &pgbaton.LockOpts{Wait: pgbaton.NoWait, Shared: true})
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)

	// A wait that times out leaves the transaction as it was.
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	_, err = pgbaton.AcquireTx(short, other, key)
	cancel()
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	var timeout string
	require.NoError(t, other.QueryRow(ctx, "SHOW lock_timeout").Scan(&timeout))
	require.Equal(t, "0", timeout)

	// Commit gives it to the next; its token is greater.
	require.NoError(t, tx.Commit(ctx))
	wait, cancel := context.WithTimeout(ctx, testkit.Patience)
	defer cancel()
	next, err := pgbaton.AcquireTx(wait, other, key, &pgbaton.LockOpts{Shared: true})
	require.NoError(t, err)
	require.Greater(t, next, token)
	require.NoError(t, other.QueryRow(ctx, "SHOW lock_timeout").Scan(&timeout))
	require.Equal(t, "0", timeout)
	shared, err := client.TryAcquireShared(ctx, key)
	require.NoError(t, err)
	require.NoError(t, shared.Release(ctx))
	require.NoError(t, other.Rollback(ctx))

	// Above READ COMMITTED what is read may be older than the lock.
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		tx := begin(level)
		_, err = pgbaton.AcquireTx(ctx, tx, key)
		require.ErrorContains(t, err, "snapshot")
		_, err = pgbaton.AcquireTx(ctx, tx, key, &pgbaton.LockOpts{StaleSnapshot: true})
		require.NoError(t, err)
		require.NoError(t, tx.Rollback(ctx))
	}
}

func TestAcquireTxErrors(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)

	t.Run("CancelCostsTheTransaction", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Migrated(t)
		lock, err := testclient.New(t, dsn, nil).Acquire(ctx, pgbaton.ID(1))
		require.NoError(t, err)
		defer lock.Release(ctx) //nolint:errcheck // the client is closed anyway
		tx, err := testkit.Connect(t, dsn).Begin(ctx)
		require.NoError(t, err)
		cancelled, cancel := context.WithCancel(ctx)
		watcher := testkit.Connect(t, dsn)
		go func() {
			for !waits(watcher) && ctx.Err() == nil { // until the call is in the queue
				runtime.Gosched()
			}
			cancel()
		}()
		_, err = pgbaton.AcquireTx(cancelled, tx, pgbaton.ID(1))
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.ErrorIs(t, err, context.Canceled)
		_, err = tx.Exec(ctx, "SELECT 1")
		require.Error(t, err)
	})
	t.Run("DeadlockIsNamed", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Migrated(t)
		first, err := testkit.Connect(t, dsn).Begin(ctx)
		require.NoError(t, err)
		second, err := testkit.Connect(t, dsn).Begin(ctx)
		require.NoError(t, err)
		_, err = pgbaton.AcquireTx(ctx, first, pgbaton.ID(1))
		require.NoError(t, err)
		_, err = pgbaton.AcquireTx(ctx, second, pgbaton.ID(2))
		require.NoError(t, err)
		outcome := make(chan error, 1)
		go func() {
			_, err := pgbaton.AcquireTx(ctx, first, pgbaton.ID(2))
			_ = first.Rollback(context.Background())
			outcome <- err
		}()
		_, err = pgbaton.AcquireTx(ctx, second, pgbaton.ID(1))
		require.NoError(t, second.Rollback(ctx))
		other := <-outcome
		require.NotEqual(t, err == nil, other == nil, "one of them goes on: %v, %v", err, other)
		if err == nil {
			err = other
		}
		require.ErrorIs(t, err, pgbaton.ErrDeadlock)
	})
	t.Run("NeedsTheSchema", func(t *testing.T) {
		t.Parallel()
		tx, err := testkit.Connect(t, testkit.Empty(t)).Begin(ctx)
		require.NoError(t, err)
		_, err = pgbaton.AcquireTx(ctx, tx, pgbaton.ID(1))
		require.ErrorIs(t, err, pgbaton.ErrSchema)
	})
}

// TestDoTx raises a counter at SERIALIZABLE from two clients: the lock is free only when the commit is there,
// so no attempt ever reads what is stale, and none fails.
func TestDoTx(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	pool, err := pgxpool.New(ctx, dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(ctx, "CREATE TABLE counter (n int); INSERT INTO counter VALUES (0)")
	require.NoError(t, err)

	const goroutines, rounds = 8, 20
	opts := &pgbaton.LockOpts{Tx: pgbaton.TxOpts{Isolation: pgx.Serializable, MaxAttempts: 1}}
	var wg sync.WaitGroup
	for i := range goroutines {
		client := []*pgbaton.Client{a, b}[i%2]
		wg.Go(func() {
			for range rounds {
				err := client.DoTx(ctx, pool, pgbaton.Name("counter"), opts,
					func(ctx context.Context, tx pgx.Tx, lock *pgbaton.Lock) error {
						var n int
						if err := tx.QueryRow(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
							return err
						}
						_, err := tx.Exec(ctx, "UPDATE counter SET n = $1", n+1)
						return errors.Join(err, lock.Err())
					})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var n int
	require.NoError(t, pool.QueryRow(ctx, "SELECT n FROM counter").Scan(&n))
	require.Equal(t, goroutines*rounds, n)

	t.Run("RollsBackOnLoss", func(t *testing.T) {
		t.Parallel()
		mine := testclient.New(t, testkit.Named(t, dsn, "dotx-loses"), nil)
		err := mine.DoTx(ctx, pool, pgbaton.Name("counter, lost"), nil,
			func(ctx context.Context, tx pgx.Tx, _ *pgbaton.Lock) error {
				_, err := tx.Exec(ctx, "UPDATE counter SET n = -1")
				require.NoError(t, err)
				_, err = pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dotx-loses' AND datname = current_database()")
				require.NoError(t, err)
				<-ctx.Done()
				return nil
			})
		require.ErrorIs(t, err, pgbaton.ErrLost)
		var now int
		require.NoError(t, pool.QueryRow(t.Context(), "SELECT n FROM counter").Scan(&now))
		require.Equal(t, n, now)
	})
}
