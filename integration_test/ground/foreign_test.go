package ground

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// TestForeignAnswers has a program that sends ahead, as some drivers do, and is killed. PgBouncer before 1.21 then gives the next client
// the answers that were meant for it, and each answer one too late. No client may take another's answer for its own.
func TestForeignAnswers(t *testing.T) {
	dsn := lab.Database(t)
	through := lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 1")
	sendAheadAndDie(t, through)
	if answer := answerOf(t, through, "SELECT 7"); answer != "7" {
		t.Logf("this PgBouncer does so: SELECT 7 was answered with %s", answer)
	}
	for name, use := range map[string]func(t *testing.T, client *pgbaton.Client){
		"semaphore": func(t *testing.T, client *pgbaton.Client) {
			t.Helper()
			sem, err := client.Semaphore(t.Context(), "foreign", 1)
			require.NoError(t, err)
			permit, err := sem.Acquire(t.Context(), 1)
			require.NoError(t, err)
			require.NoError(t, permit.Release(t.Context()))
		},
		"lease": func(t *testing.T, client *pgbaton.Client) {
			t.Helper()
			lock, err := client.Acquire(t.Context(), pgbaton.Name("foreign"))
			require.NoError(t, err)
			require.NoError(t, lock.Release(t.Context()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := testclient.New(t, through, &pgbaton.Config{TTL: 30 * time.Second})
			for range 5 {
				sendAheadAndDie(t, through)
				use(t, client)
			}
		})
	}
}

// sendAheadAndDie sends two transactions at once, and is gone when the first is answered and the second is not.
func sendAheadAndDie(t *testing.T, dsn string) {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	require.NoError(t, err)
	raw, err := conn.PgConn().Hijack()
	require.NoError(t, err)
	for _, sql := range []string{"SELECT 1", "SELECT 2 FROM pg_sleep(0.3)"} {
		raw.Frontend.SendParse(&pgproto3.Parse{Query: sql})
		raw.Frontend.SendBind(&pgproto3.Bind{})
		raw.Frontend.SendExecute(&pgproto3.Execute{})
		raw.Frontend.SendSync(&pgproto3.Sync{})
	}
	require.NoError(t, raw.Frontend.Flush())
	for {
		msg, err := raw.Frontend.Receive()
		require.NoError(t, err)
		if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
			break
		}
	}
	require.NoError(t, raw.Conn.Close())
}

// answerOf is the answer that a client of no particular care takes for its own.
func answerOf(t *testing.T, dsn, sql string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cfg, err := pgx.ParseConfig(testkit.With(t, dsn, "default_query_exec_mode", "exec"))
	require.NoError(t, err)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var answer int
	if err := conn.QueryRow(ctx, sql).Scan(&answer); err != nil {
		return err.Error()
	}
	return strconv.Itoa(answer)
}
