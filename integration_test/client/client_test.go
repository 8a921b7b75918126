// Package client tests what a service sees of the library, with clients in this process, on the one server of DATABASE_URL:
// every call, its errors, and what hammers, cuts and storms do to it.
package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func TestNew(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)

	t.Run("RefusesBadInput", func(t *testing.T) {
		t.Parallel()
		_, err := pgbaton.New(ctx, (*pgxpool.Pool)(nil), nil)
		require.ErrorContains(t, err, "the pool or the database is nil")
		for text, cfg := range map[string]pgbaton.Config{
			"Config.TTL is 999ms":   {TTL: 999 * time.Millisecond},
			"Config.TTL is 1h0m1s":  {TTL: time.Hour + time.Second},
			"Config.MaxConns is 1":  {MaxConns: 1},
			"Config.MaxConns is -4": {MaxConns: -4},
			"Config.MaxHeld is -1":  {MaxHeld: -1},
		} {
			_, err := pgbaton.Open(ctx, testkit.Server(t), &cfg)
			require.ErrorContains(t, err, text)
		}
		_, err = pgbaton.Open(ctx, "postgres://u:secret@[bad", nil)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "secret")
	})
	t.Run("RefusesMaxHeldThatTheServerHasNoRoomFor", func(t *testing.T) {
		t.Parallel()
		_, err := pgbaton.Open(ctx, testkit.Migrated(t), &pgbaton.Config{MaxHeld: 10_000_000})
		require.ErrorIs(t, err, pgbaton.ErrTooManyLocks)
		require.ErrorContains(t, err, "max_locks_per_transaction")
	})
	t.Run("NamesAServerThatIsAway", func(t *testing.T) {
		t.Parallel()
		_, err := pgbaton.Open(ctx, "postgres://u:secret@127.0.0.1:1/db", nil)
		require.ErrorContains(t, err, "127.0.0.1:1")
		require.NotContains(t, err.Error(), "secret")
	})
	t.Run("NeedsTheSchema", func(t *testing.T) {
		t.Parallel()
		_, err := pgbaton.Open(ctx, testkit.Empty(t), nil)
		require.ErrorIs(t, err, pgbaton.ErrSchema)
		require.ErrorContains(t, err, "run its migrations")
	})
	t.Run("UsesThePoolsConfigAndLeavesThePoolAlone", func(t *testing.T) {
		t.Parallel()
		config, err := pgxpool.ParseConfig(testkit.Migrated(t))
		require.NoError(t, err)
		config.MaxConns = 1
		var before, after atomic.Int32
		config.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
			before.Add(1)
			cfg.RuntimeParams["application_name"] = "from the hook"
			return nil
		}
		config.AfterConnect = func(context.Context, *pgx.Conn) error {
			after.Add(1)
			return nil
		}
		pool, err := pgxpool.NewWithConfig(ctx, config)
		require.NoError(t, err)
		defer pool.Close()
		conn, err := pool.Acquire(ctx) // the pool is exhausted from here on
		require.NoError(t, err)
		defer conn.Release()
		beforePool, afterPool := before.Load(), after.Load()

		client, err := pgbaton.New(ctx, pool, nil)
		require.NoError(t, err)
		lock, err := client.Acquire(ctx, pgbaton.Name("hooks"))
		require.NoError(t, err)
		require.Equal(t, beforePool+2, before.Load()) // the session for locks, and for a moment a second one to try it out with
		require.Equal(t, afterPool+2, after.Load())
		require.Eventually(t, func() bool {
			var named int
			err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity
				WHERE application_name = 'from the hook' AND datname = current_database()`).Scan(&named)
			return err == nil && named == 2
		}, testkit.Patience, 5*time.Millisecond)
		require.NoError(t, lock.Release(ctx))
		require.NoError(t, client.Close(ctx))
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client, err := pgbaton.Open(ctx, dsn, nil)
	require.NoError(t, err)
	other := testclient.New(t, dsn, nil)
	key := pgbaton.Name("closed")

	lock, err := client.Acquire(ctx, key)
	require.NoError(t, err)
	taken, err := other.Acquire(ctx, pgbaton.Name("elsewhere"))
	require.NoError(t, err)
	failed := make(chan error, 2)
	for _, k := range []pgbaton.Key{key, taken.Key()} { // one waits in the process, one on the server
		go func() {
			_, err := client.Acquire(ctx, k)
			failed <- err
		}()
	}
	waiting(t, testkit.Connect(t, dsn))

	require.NoError(t, client.Close(ctx))
	require.ErrorIs(t, <-failed, pgbaton.ErrClosed)
	require.ErrorIs(t, <-failed, pgbaton.ErrClosed)
	free, err := other.TryAcquire(ctx, key) // at once
	require.NoError(t, err)
	require.NoError(t, free.Release(ctx))
	<-lock.Done()
	require.ErrorIs(t, lock.Err(), pgbaton.ErrClosed)
	require.Equal(t, "client closed", pgbaton.LossReasonOf(lock.Err()))
	require.ErrorIs(t, lock.Release(ctx), pgbaton.ErrLost)
	_, err = client.Acquire(ctx, key)
	require.ErrorIs(t, err, pgbaton.ErrClosed)
	_, err = client.TryAcquire(ctx, key)
	require.ErrorIs(t, err, pgbaton.ErrClosed)
	require.NoError(t, client.Close(ctx))
	require.NoError(t, taken.Release(ctx))
}

// TestServiceRole proves that the documented grant is enough, and needed.
func TestServiceRole(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	admin := testkit.Connect(t, dsn)
	role := fmt.Sprintf("service_%d", time.Now().UnixNano())
	_, err := admin.Exec(ctx, "CREATE ROLE "+role+" LOGIN PASSWORD 'service'")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role)
		require.NoError(t, err)
	})
	config, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	as := fmt.Sprintf("postgres://%s:service@%s:%d/%s?sslmode=disable", role, config.Host, config.Port, config.Database)

	grant := "SELECT pgbaton.grant_service('\"" + role + "\"')"
	_, err = pgbaton.Open(ctx, as, nil)
	require.ErrorIs(t, err, pgbaton.ErrSchema)
	require.ErrorContains(t, err, grant)
	_, err = admin.Exec(ctx, "GRANT USAGE ON SCHEMA pgbaton TO "+role) // as it was done before
	require.NoError(t, err)
	_, err = pgbaton.Open(ctx, as, nil)
	require.ErrorIs(t, err, pgbaton.ErrSchema)
	require.ErrorContains(t, err, grant)
	_, err = admin.Exec(ctx, grant)
	require.NoError(t, err)
	// The sequence's repair needs more than the role has: the function has it.
	_, err = admin.Exec(ctx, "TRUNCATE pgbaton.incarnation")
	require.NoError(t, err)
	a, b := testclient.New(t, as, nil), testclient.New(t, as, nil)
	lock, err := a.Acquire(ctx, pgbaton.Name("service"))
	require.NoError(t, err)
	waiter := background(t, func() (*pgbaton.Lock, error) { return b.Acquire(ctx, pgbaton.Name("service")) })
	waiting(t, admin)
	require.NoError(t, lock.Release(ctx))
	require.NoError(t, (<-waiter).Release(ctx))

	conn := testkit.Connect(t, as)
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = pgbaton.AcquireTx(ctx, tx, pgbaton.Name("service"))
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
}

// A server that ends the connections while a client is opened is asked again, but not for ever.
func TestNew_WhileSessionsAreEnded(t *testing.T) {
	t.Parallel()
	cfg, err := pgxpool.ParseConfig(testkit.Migrated(t))
	require.NoError(t, err)
	var ends, opened atomic.Int64
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		opened.Add(1)
		if ends.Add(-1) < 0 {
			return nil
		}
		_, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pg_backend_pid())")
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	defer pool.Close()

	ends.Store(2)
	client, err := pgbaton.New(t.Context(), pool, nil)
	require.NoError(t, err)
	require.NoError(t, client.Close(t.Context()))

	ends.Store(1000)
	opened.Store(0)
	_, err = pgbaton.New(t.Context(), pool, nil)
	require.ErrorContains(t, err, "57P01")
	require.LessOrEqual(t, opened.Load(), int64(10), "two connections an attempt")
	require.Greater(t, opened.Load(), int64(2))
}
