package ground_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

type account struct {
	ID      int64
	Balance int64
	Version int64
}

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

// TestRecipe_ExecModes is the table of docs/ground.md: which of pgx's modes work for what lives in a transaction, through a
// pooler in transaction mode that knows nothing of prepared statements.
func TestRecipe_ExecModes(t *testing.T) {
	direct := testkit.Migrated(t)
	testkit.Run(t, direct, accounts)
	through := lab.PgBouncer(t, direct, "transaction")
	for mode, works := range map[string]bool{
		"cache_statement": false, "cache_describe": true, "describe_exec": true, "exec": true, "simple_protocol": true,
	} {
		t.Run(mode, func(t *testing.T) {
			failures := 0
			for range 3 { // sessions are shared: what one client has prepared another one meets
				pool, err := pgxpool.New(t.Context(), testkit.With(t, through, "default_query_exec_mode", mode))
				require.NoError(t, err)
				for range 5 {
					if err := inTransactions(t.Context(), pool); err != nil {
						t.Logf("%s: %v", mode, err)
						failures++
					}
				}
				pool.Close()
			}
			if works {
				require.Zero(t, failures)
			} else {
				require.Positive(t, failures, "it works by now: say so in docs/ground.md")
			}
		})
	}
}

// inTransactions does what needs no session, over a pool.
func inTransactions(ctx context.Context, pool *pgxpool.Pool) error {
	table, key := pgx.Identifier{"account"}, pgbaton.Values{"id": int64(1)}
	err := pgbaton.InTx(ctx, pool, &pgbaton.TxOpts{MaxAttempts: 1}, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := pgbaton.AcquireTx(ctx, tx, pgbaton.Name("account/1")); err != nil {
			return err
		}
		_, err := pgbaton.LockRow[account](ctx, tx, table, key, nil)
		return err
	})
	if err == nil {
		_, err = pgbaton.Mutate(ctx, pool, table, key, nil, func(a *account) error { a.Balance++; return nil })
	}
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
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
