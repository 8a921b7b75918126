//go:build unix

package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

type finding struct {
	Topic, Level, Says, Do string
	SQL                    []string
}

// staleRows returns what a doctor says of stale rows.
func staleRows(t *testing.T, dsn string, status int) finding {
	t.Helper()
	const topic = "stale rows"
	for _, f := range decoded[[]finding](t, dsn, status, "doctor") {
		if f.Topic == topic {
			return f
		}
	}
	require.Fail(t, "the doctor says nothing", topic)
	return finding{}
}

// TestDoctor_StaleRows leaves rows of the dead, and has the doctor's own statements sweep them, which a service may call.
func TestDoctor_StaleRows(t *testing.T) {
	t.Parallel()
	const none = "There are none: nothing is left of the dead."
	role := testkit.Role(t)
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, "SELECT pgbaton.grant_service('"+role+"')")
	require.Equal(t, none, staleRows(t, dsn, 0).Says)
	conn := testkit.Connect(t, dsn)
	const long = "clock_timestamp() - interval '3 hours'"
	testkit.Exec(t, conn, `
		INSERT INTO pgbaton.registry (kind, holder, publisher, since, ids) VALUES
		    ('held', 4711, 4711, `+long+`, NULL), ('waiting', 4711, 4711, `+long+`, NULL), ('client', 4711, 4711, `+long+`, '{4711}')`)
	testkit.Exec(t, conn, `INSERT INTO pgbaton.lock_client (id, engine, name, pid, joined_at) VALUES (4712, 'session', 'dead', 0, `+long+`)`)
	testkit.Exec(t, conn, `
		INSERT INTO pgbaton.lease (key, pair, last, holder, token, expires_at, length)
		VALUES (1, false, 1, -5, 1, `+long+`, 15000), (2, false, 1, -5, 1, clock_timestamp() - interval '1 minute', 15000)`)

	f := staleRows(t, dsn, 1)
	require.Equal(t, "warning", f.Level)
	for _, says := range []string{"3 of registry, the oldest from ", "2 of leases, the oldest from ", "1 of connections, the oldest from "} {
		require.Contains(t, f.Says, says)
	}
	require.Equal(t, []string{"SELECT count(*) FROM pgbaton.list_locks()", "SELECT pgbaton.tend_leases()"}, f.SQL)

	// A service cannot see them, and is told so.
	as := testkit.As(t, dsn, role)
	require.Contains(t, staleRows(t, as, 0).Says, "cannot be counted")

	// What a client that runs will sweep is no fault. Of the leases nobody but the lease engine's clients takes care.
	held := call(t, dsn, "run", "k", "--", "sh", "-c", "echo ready; exec sleep 999")
	require.Equal(t, "ready", held.line(t))
	f = staleRows(t, dsn, 1)
	require.Equal(t, []string{"SELECT pgbaton.tend_leases()"}, f.SQL)
	require.NoError(t, held.Process.Kill())
	held.requireStatus(t, -1)

	for _, sql := range []string{"SELECT count(*) FROM pgbaton.list_locks()", "SELECT pgbaton.tend_leases()"} {
		testkit.Run(t, as, sql)
	}
	f = staleRows(t, dsn, 0)
	require.Contains(t, f.Says, "1 of leases, the oldest from ", "it is too young to be swept")
	require.Empty(t, f.SQL)
}

func TestDoctor_StaleRowsOfThePortableSchema(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	sql, _ := output(t, dsn, 0, "migrate", "sql", "--portable")
	testkit.Run(t, dsn, sql)
	conn := testkit.Connect(t, dsn)
	testkit.Exec(t, conn, `
		INSERT INTO pgbaton.lease (key, pair, last, holder, token, expires_at, length)
		VALUES (1, false, 1, -5, 1, clock_timestamp() - interval '3 hours', 15000)`)
	f := staleRows(t, dsn, 1)
	require.Contains(t, f.Says, "1 of leases, the oldest from ")
	require.Equal(t, []string{"SELECT pgbaton.tend_leases()"}, f.SQL)
	testkit.Run(t, dsn, f.SQL[0])
	require.Equal(t, "There are none: nothing is left of the dead.", staleRows(t, dsn, 1).Says)
}
