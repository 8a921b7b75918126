package session

import (
	"context"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A session that is asked in place of a second one is granted the key again, as by an engine whose locks do
// nothing; and one that is asked in place of two is, in a transaction, what a pooler makes of them.
func TestProbe(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	ctx := context.Background()
	one, two := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	try := func(witnessed *pgx.Conn) error {
		w := &witness{called: make(chan struct{}), conn: two, key: "4711"}
		close(w.called)
		commands, err := w.testify(ctx, witnessed.PgConn(), pid(witnessed), true, true)
		require.NoError(t, err)
		answers, err := fly(ctx, witnessed.PgConn(), false, commands)
		require.NoError(t, err)
		return w.judge(ctx, w.identity, answers)
	}
	testkit.Exec(t, two, "SET statement_timeout = '1h'; SET idle_session_timeout = '1h'")
	require.NoError(t, try(one))
	for _, timeout := range []string{"statement_timeout", "idle_session_timeout"} {
		require.Equal(t, "0", testkit.Value[string](t, two, "SHOW "+timeout), "the role's may end the witness while it has the key")
	}
	left := testkit.Value[int64](t, testkit.Connect(t, dsn),
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1", int32(one.PgConn().PID())) //nolint:gosec // a pid
	require.Zero(t, left)

	third := testkit.Connect(t, dsn)
	w := &witness{key: "4712", identity: "here", conn: third}
	require.ErrorContains(t, w.judge(ctx, "there", nil), "reached two servers")
	yes := answer{rows: [][][]byte{{[]byte("t")}}}
	no, null := answer{rows: [][][]byte{{[]byte("f")}}}, answer{rows: [][][]byte{{nil}}}
	for says, answers := range map[string][]answer{
		"grants one key to two sessions":             {yes, yes},
		"refuses a lock on a free key":               {no, null},
		"has forgotten a lock that was just granted": {no, no},
	} {
		testkit.Exec(t, third, "SELECT pg_advisory_lock(4712)")
		err := w.judge(ctx, "here", answers)
		require.ErrorIs(t, err, lockerr.UnsupportedServer)
		require.ErrorContains(t, err, says)
	}
	testkit.Exec(t, third, "SELECT pg_advisory_unlock_all()")
	for range 2 { // a session that no longer has the key, and one that is no more
		err := w.judge(ctx, "here", []answer{yes, yes})
		require.NotErrorIs(t, err, lockerr.UnsupportedServer)
		require.ErrorContains(t, err, "was lost")
		testkit.Exec(t, one, "SELECT pg_terminate_backend($1)", int32(third.PgConn().PID())) //nolint:gosec // a pid
	}

	require.NoError(t, probePooler(ctx, one.PgConn(), two.PgConn(), pid(one), 2))
	require.ErrorIs(t, probePooler(ctx, one.PgConn(), one.PgConn(), pid(one), 1), lockerr.Pooler)
	testkit.Exec(t, one, "ROLLBACK")
	require.ErrorIs(t, probePooler(ctx, one.PgConn(), two.PgConn(), pid(two), 1), lockerr.Pooler)
}

func pid(conn *pgx.Conn) string { return strconv.FormatUint(uint64(conn.PgConn().PID()), 10) }
