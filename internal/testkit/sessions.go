package testkit

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// here leaves out the sessions of other tests, in databases of their own, that may have the same name.
const here = " AND datname = current_database()"

// Session is a session of a client, as pg_stat_activity shows it.
type Session struct {
	PID   int
	Query string
}

// Sessions lists the sessions with an application_name.
func Sessions(tb testing.TB, conn *pgx.Conn, name string) []Session {
	tb.Helper()
	rows, err := conn.Query(context.Background(),
		"SELECT pid, query FROM pg_stat_activity WHERE application_name = $1"+here+" ORDER BY pid", name)
	require.NoError(tb, err)
	sessions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Session])
	require.NoError(tb, err)
	return sessions
}

// HeldBy counts the locks that sessions with an application_name hold or wait for: advisory locks, without those that only show
// that a holder lives, and leases.
func HeldBy(tb testing.TB, conn *pgx.Conn, name string) int {
	tb.Helper()
	return Value[int](tb, conn, `SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
		WHERE l.locktype = 'advisory' AND a.application_name = $1`+here+` AND NOT EXISTS (
			SELECT FROM pgbaton.lock_client AS c WHERE c.pid = a.pid
			   AND (l.classid::bigint << 32 | l.objid::bigint) = c.id)`, name) +
		Value[int](tb, conn, `SELECT count(*) FROM (
			SELECT holder FROM pgbaton.lease UNION ALL SELECT holder FROM pgbaton.lease_share) AS h
		  JOIN pgbaton.lock_client AS c ON c.id = h.holder JOIN pg_stat_activity AS a USING (pid)
		 WHERE a.application_name = $1`+here, name)
}

// Waiting counts the sessions with an application_name that wait for an advisory lock, or ask for leases again and again.
func Waiting(tb testing.TB, conn *pgx.Conn, name string) int {
	tb.Helper()
	return Value[int](tb, conn, `SELECT count(*) FROM pg_stat_activity
		WHERE application_name = $1 AND (wait_event_type = 'Lock' AND wait_event = 'advisory' OR query ~ 'pgbaton.acquire_leases')`+here, name)
}

// Statements looks at the sessions with an application_name for a while, often enough to see each of their
// statements begin, and returns how many began and how many sessions there were at the most.
func Statements(tb testing.TB, control *pgx.Conn, name string, watched time.Duration) (statements, most int) {
	tb.Helper()
	started := map[int]time.Time{}
	ticker := time.NewTicker(3 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(watched); time.Now().Before(end); <-ticker.C {
		rows, err := control.Query(context.Background(),
			"SELECT pid, query_start FROM pg_stat_activity WHERE application_name = $1 AND query_start IS NOT NULL"+here, name)
		require.NoError(tb, err)
		sessions := 0
		var pid int
		var at time.Time
		_, err = pgx.ForEachRow(rows, []any{&pid, &at}, func() error {
			sessions++
			if before, seen := started[pid]; seen && !before.Equal(at) {
				statements++
			}
			started[pid] = at
			return nil
		})
		require.NoError(tb, err)
		most = max(most, sessions)
	}
	return statements, most
}
