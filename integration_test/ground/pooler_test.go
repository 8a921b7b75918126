// Package ground_test shows on which ground the library refuses to stand, with real poolers and standbys.
package ground_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestPooler(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			through := lab.PgBouncer(t, dsn, mode)

			// Whoever does not know of it is told of it in either mode.
			_, err := pgbaton.Open(ctx, through, &pgbaton.Config{Engine: pgbaton.EngineSession})
			require.ErrorIs(t, err, pgbaton.ErrPooler)
			require.ErrorContains(t, err, "Config.SessionPooler")

			// Who says that it is in session mode had better be right.
			client, err := pgbaton.Open(ctx, through, &pgbaton.Config{SessionPooler: true, Engine: pgbaton.EngineSession})
			if mode == "transaction" {
				require.ErrorIs(t, err, pgbaton.ErrPooler)
				require.ErrorContains(t, err, "transaction mode")
				requireLeases(t, through)
			} else {
				require.NoError(t, err)
				requireLocks(t, client, dsn)
			}
			requireNoTrace(t, dsn)
		})
	}
}

// requireLocks makes sure that a client behind a pooler excludes one that is not.
func requireLocks(t *testing.T, client *pgbaton.Client, dsn string) {
	t.Helper()
	ctx := t.Context()
	direct, err := pgbaton.Open(ctx, dsn, nil)
	require.NoError(t, err)
	lock, err := client.Acquire(ctx, pgbaton.Name("pooled"))
	require.NoError(t, err)
	_, err = direct.TryAcquire(ctx, pgbaton.Name("pooled"))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, lock.Release(ctx))
	require.NoError(t, client.Close(ctx))
	require.NoError(t, direct.Close(ctx))
}

// requireLeases makes sure that behind a pooler in transaction mode locks are leases, and that what lives in transactions works.
func requireLeases(t *testing.T, through string) {
	t.Helper()
	ctx := t.Context()
	client, err := pgbaton.Open(ctx, through, &pgbaton.Config{SessionPooler: true})
	require.NoError(t, err)
	lock, err := client.Acquire(ctx, pgbaton.Name("leased"))
	require.NoError(t, err)
	other, err := pgbaton.Open(ctx, through, nil)
	require.NoError(t, err)
	_, err = other.TryAcquire(ctx, pgbaton.Name("leased"))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, lock.Release(ctx))
	require.NoError(t, other.Close(ctx))
	found, err := client.Diagnose(ctx)
	require.NoError(t, err)
	require.ErrorIs(t, found.NoSession, pgbaton.ErrPooler)
	require.Equal(t, []string{"lease", "transaction"}, []string{found.Engine, found.Pooler})
	require.Positive(t, found.Schema)
	require.NoError(t, client.Close(ctx))

	config, err := pgx.ParseConfig(through)
	require.NoError(t, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeExec // prepared statements do not survive such a pooler either
	conn, err := pgx.ConnectConfig(ctx, config)
	require.NoError(t, err)
	defer conn.Close(ctx)
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	token, err := pgbaton.AcquireTx(ctx, tx, pgbaton.Name("in a transaction"))
	require.NoError(t, err)
	require.Positive(t, token)
	require.NoError(t, tx.Commit(ctx))
}

// requireNoTrace makes sure that neither a lock nor a setting is left on the pooler's sessions.
func requireNoTrace(t *testing.T, dsn string) {
	t.Helper()
	conn := testkit.Connect(t, dsn)
	require.Eventually(t, func() bool {
		return testkit.Value[int64](t, conn, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
	}, lab.Hang, 10*time.Millisecond)
}

// TestPooler_TransactionModeGrantsTwice is the control: it shows, with bare SQL, the double grant that the
// library refuses to risk.
func TestPooler_TransactionModeGrantsTwice(t *testing.T) {
	t.Parallel()
	through := lab.PgBouncer(t, testkit.Migrated(t), "transaction")
	grants := 0
	for range 2 {
		config, err := pgx.ParseConfig(through)
		require.NoError(t, err)
		config.DefaultQueryExecMode = pgx.QueryExecModeExec
		conn, err := pgx.ConnectConfig(t.Context(), config)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		if testkit.Value[bool](t, conn, "SELECT pg_try_advisory_lock(1)") {
			grants++
		}
	}
	require.Equal(t, 2, grants)
}
