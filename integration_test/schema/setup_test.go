package schema_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// newDatabase makes a migrated database and a role that has the documented grants, and returns the
// URLs of the owner and of that role.
func newDatabase(t *testing.T) (owner, app string) {
	t.Helper()
	role := dbtest.Role(t)
	owner = dbtest.Migrated(t)
	dbtest.Exec(t, dbtest.Connect(t, owner), "SELECT pgbaton.grant_service('"+role+"')")
	return owner, dbtest.As(t, owner, role)
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
	dbtest.WaitFor(t, observer, "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", int32(pid))
}

func nextToken(t *testing.T, conn *pgx.Conn) int64 {
	t.Helper()
	return dbtest.Value[int64](t, conn, "SELECT pgbaton.next_token()")
}
