package schema_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// newDatabase makes a migrated database and a role that has the documented grants, and returns the
// URLs of the owner and of that role.
func newDatabase(t *testing.T) (owner, app string) {
	t.Helper()
	role := testkit.Role(t)
	owner = testkit.Migrated(t)
	testkit.Exec(t, testkit.Connect(t, owner), "SELECT pgbaton.grant_service('"+role+"')")
	return owner, testkit.As(t, owner, role)
}

// racing returns what says whether calls that race with others go on: for so many rounds, a sixth of them with -short, and
// until the rarest result was there more than 50 times, or 10. How often each comes depends on the machine.
func racing(t *testing.T, rounds int) (again func(rarest int) bool) {
	t.Helper()
	limit, done, end := testkit.Brief(rounds, rounds/6), 0, time.Now().Add(lab.Hang)
	return func(rarest int) bool {
		done++
		enough := rarest > testkit.Brief(50, 10)
		require.True(t, enough || done <= limit || time.Now().Before(end), "the race is not one: the rarest result came %d times", rarest)
		return done <= limit || !enough
	}
}

func pidOf(conn *pgx.Conn) uint32 { return conn.PgConn().PID() }

// advisoryLocks returns the bigint keys that the session of pid holds, seen from another session.
func advisoryLocks(t *testing.T, observer *pgx.Conn, pid uint32) []int64 {
	t.Helper()
	const sqlLocks = `
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND granted AND pid = $1 ORDER BY 1`
	rows, err := observer.Query(t.Context(), sqlLocks, int32(pid))
	require.NoError(t, err)
	keys, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return keys
}

// waitsForLock returns when the session of pid waits for a lock.
func waitsForLock(t *testing.T, observer *pgx.Conn, pid uint32) {
	t.Helper()
	testkit.WaitFor(t, observer, "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", int32(pid))
}

func nextToken(t *testing.T, conn *pgx.Conn) int64 {
	t.Helper()
	return testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()")
}
