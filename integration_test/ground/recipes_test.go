package ground_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const accounts = `CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, version bigint NOT NULL DEFAULT 1);
	INSERT INTO account VALUES (1, 100)`

// TestRecipe_ClientDirectPoolBehindAPooler is how a service lives with a pooler in transaction mode: the client goes to the
// server itself, and the service's own pool goes through the pooler.
func TestRecipe_ClientDirectPoolBehindAPooler(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	direct := testkit.Migrated(t)
	testkit.Run(t, direct, accounts)
	through := lab.PgBouncer(t, direct, "transaction")

	client, err := pgbaton.Open(ctx, direct, nil)
	require.NoError(t, err)
	defer client.Close(context.Background())
	pool, err := pgxpool.New(ctx, testkit.With(t, through, "default_query_exec_mode", "exec"))
	require.NoError(t, err)
	defer pool.Close()

	for range 20 {
		err = client.Do(ctx, pgbaton.Name("account/1"), func(ctx context.Context, lock *pgbaton.Lock) error {
			return pgbaton.InTx(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
				if err := lock.Assert(ctx, tx); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "UPDATE account SET balance = balance - 1 WHERE id = 1")
				return err
			})
		})
		require.NoError(t, err)
	}
	require.Equal(t, int64(80), testkit.Value[int64](t, testkit.Connect(t, direct), "SELECT balance FROM account"))
}

// TestRecipe_LibPQ goes through such a pooler with lib/pq, which prepares a statement for every query with parameters unless
// it is told to send them in one message.
func TestRecipe_LibPQ(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	direct := testkit.Migrated(t)
	testkit.Run(t, direct, accounts)
	through := testkit.With(t, lab.PgBouncer(t, direct, "transaction"), "binary_parameters", "yes")
	db, err := sql.Open("postgres", through)
	require.NoError(t, err)
	defer db.Close()
	for range 10 {
		tx, err := db.BeginTx(ctx, nil)
		require.NoError(t, err)
		token, err := pgbaton.AcquireTx(ctx, pgbaton.SQLTx(tx), pgbaton.Name("account/1"))
		require.NoError(t, err)
		require.Positive(t, token)
		require.NoError(t, tx.Commit())
		_, err = pgbaton.UpdateVersion(ctx, pgbaton.SQLDB(db), pgx.Identifier{"account"}, pgbaton.Values{"id": int64(1)},
			testkit.Value[int64](t, testkit.Connect(t, direct), "SELECT version FROM account"), pgbaton.Values{"balance": int64(7)}, nil)
		require.NoError(t, err)
	}
}

// TestRecipe_SessionModeNeedsPlaces is why a pooler in session mode must have as many places as all clients may want: each
// connection of a client is a session of the server's for as long as it lives.
func TestRecipe_SessionModeNeedsPlaces(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	direct := testkit.Migrated(t)
	through := lab.PgBouncer(t, direct, "session") // 4 places
	one, err := pgbaton.Open(ctx, through, &pgbaton.Config{SessionPooler: true})
	require.NoError(t, err)
	defer one.Close(context.Background())
	lock, err := one.Acquire(ctx, pgbaton.Name("k"))
	require.NoError(t, err)
	two, err := pgbaton.Open(ctx, through, &pgbaton.Config{SessionPooler: true, MaxConns: 2})
	require.NoError(t, err, "two anchors, and a second connection for a moment")
	defer two.Close(context.Background())
	_, err = two.TryAcquire(ctx, pgbaton.Name("k"))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	waited := make(chan error, 1)
	go func() {
		theirs, failed := two.Acquire(ctx, pgbaton.Name("k"))
		if failed == nil {
			failed = theirs.Release(ctx)
		}
		waited <- failed
	}()
	require.NoError(t, lock.Release(ctx))
	require.NoError(t, <-waited)
}
