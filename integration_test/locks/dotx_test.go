package locks

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// A synchronous standby is away, so commits hang, their outcome is unknown to the holder, and they appear later. The next
// holder of the key waits for them: no update of the counter is lost, over any driver, at any isolation level.
func TestServer_DoTxAndCommitsInDoubt(t *testing.T) {
	t.Parallel()
	server := lab.OwnServer(t, nil)
	dsn := lab.DatabaseOn(t, server)
	clients := []*pgbaton.Client{testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)}
	control := testkit.Connect(t, dsn)
	testkit.Exec(t, control, "SET synchronous_commit = local")
	testkit.Exec(t, control, "CREATE TABLE counter (n bigint); INSERT INTO counter VALUES (0)")
	away := func(name string) {
		testkit.Exec(t, control, "ALTER SYSTEM SET synchronous_standby_names = '"+name+"'")
		testkit.Exec(t, control, "SELECT pg_reload_conf()")
		testkit.Eventually(t, "the setting counts", func() bool {
			return testkit.Value[string](t, control, "SHOW synchronous_standby_names") == name
		})
	}
	defer away("") // else nothing of the clean-up would end
	const raise = "UPDATE counter SET n = $1"
	pool := testkit.Pool(t, dsn)
	kinds := map[string]func(ctx context.Context, client *pgbaton.Client, opts *pgbaton.LockOpts) error{
		"pgx": func(ctx context.Context, client *pgbaton.Client, opts *pgbaton.LockOpts) error {
			return client.DoTx(ctx, pool, pgbaton.Name("counter"), opts, func(ctx context.Context, tx pgx.Tx, _ *pgbaton.Lock) error {
				var n int64
				if err := tx.QueryRow(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, raise, n+1)
				return err
			})
		},
	}
	for _, driver := range []string{"pgx", "postgres"} {
		db, err := sql.Open(driver, testkit.With(t, dsn, "sslmode", "disable"))
		require.NoError(t, err)
		t.Cleanup(func() { _ = db.Close() })
		kinds["database/sql, "+driver] = func(ctx context.Context, client *pgbaton.Client, opts *pgbaton.LockOpts) error {
			return client.DoSQLTx(ctx, db, pgbaton.Name("counter"), opts, func(ctx context.Context, tx *sql.Tx, _ *pgbaton.Lock) error {
				var n int64
				if err := tx.QueryRowContext(ctx, "SELECT n FROM counter").Scan(&n); err != nil {
					return err
				}
				_, err := tx.ExecContext(ctx, raise, n+1)
				return err
			})
		}
	}
	unknown, raised := 0, int64(0)
	for name, do := range kinds {
		for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
			opts := &pgbaton.LockOpts{Tx: pgbaton.TxOpts{Isolation: level, MaxAttempts: 1}}
			require.NoError(t, do(t.Context(), clients[0], opts), name) // the connections are open
			raised++
			away("nobody")
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := do(ctx, clients[0], opts)
			cancel()
			if errors.Is(err, pgbaton.ErrCommitUnknown) {
				unknown++
			}
			next := make(chan error, 1)
			go func() { next <- do(t.Context(), clients[1], opts) }()
			time.Sleep(200 * time.Millisecond) // it looks while the first one is in doubt
			away("")
			require.NoError(t, <-next, "%s, %s", name, level)
			raised++
			switch { // a driver that asks the server to cancel, and waits, knows that it has committed
			case err == nil, errors.Is(err, pgbaton.ErrCommitUnknown):
				raised++
			default:
				require.ErrorIs(t, err, context.DeadlineExceeded) // before the commit, on a busy machine
			}
			require.Equal(t, raised, testkit.Value[int64](t, control, "SELECT n FROM counter"), "%s, %s: %v", name, level, err)
		}
	}
	require.Positive(t, unknown, "else nothing was tried")
	t.Logf("%d commits in doubt", unknown)
}
