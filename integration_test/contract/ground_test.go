package contract

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/emulation"
)

// ground is a kind of database with a way to it, and the engine that excludes there.
type ground struct {
	name   string
	engine pgbaton.Engine
	// refused is what New says there to EngineSession; nil if it is that only where something else is recorded.
	refused error
	foreign bool // a server of the user's, of which nothing is known
	// sudden reports that connections are cut: a lock may be lost at any time, and an acquire refused before its time.
	sudden bool

	// prepare makes a database. It returns its URLs: as the clients reach it, before what stands in between, and as the test does.
	prepare func(t *testing.T) (clients, control string)
	through func(t *testing.T, dsn string) string // nil: nothing stands in between
	habits  emulation.Habits
}

// grounds are all grounds of this run.
func grounds() []ground {
	list := []ground{
		{name: "session engine", engine: pgbaton.EngineSession},
		{name: "leases", engine: pgbaton.EngineLease},
		{name: "leases, PgBouncer in transaction mode", engine: pgbaton.EngineLease, refused: pgbaton.ErrPooler, through: bouncer},
		{name: "leases, serializable", engine: pgbaton.EngineLease, prepare: isolated("serializable")},
		{name: "leases, repeatable read", engine: pgbaton.EngineLease, prepare: isolated("repeatable read")},
		{name: "leases, session locks always true", engine: pgbaton.EngineLease, refused: pgbaton.ErrUnsupportedServer, prepare: stubbed(sessionLocks)},
		{name: "leases, all advisory locks always true", engine: pgbaton.EngineLease, refused: pgbaton.ErrUnsupportedServer, prepare: stubbed(allLocks)},
		{name: "portable", engine: pgbaton.EngineLease, refused: pgbaton.ErrUnsupportedServer, prepare: portable(false, "")},
		{name: "portable, serializable", engine: pgbaton.EngineLease, refused: pgbaton.ErrUnsupportedServer, prepare: portable(true, "serializable")},
		{name: "portable, repeatable read", engine: pgbaton.EngineLease, refused: pgbaton.ErrUnsupportedServer, prepare: portable(true, "repeatable read")},
		{
			name: "portable, 5 ms, 5 % of statements and commits fail, 1 % of answers get lost", engine: pgbaton.EngineLease,
			refused: pgbaton.ErrUnsupportedServer, prepare: portable(false, "serializable"), sudden: true,
			habits: emulation.Habits{Seed: seed, Delay: quorum, FailStatements: 0.05, FailCommits: 0.05, DropCommits: 0.01},
		},
	}
	list = append(list, distributed()...)
	if asked := foreign(); len(asked) > 0 {
		return asked
	}
	return list
}

// distributed are emulations of engines whose session locks exclude nobody and that have a habit besides.
func distributed() (list []ground) {
	for _, h := range []struct {
		name   string
		habits emulation.Habits
		sudden bool
	}{
		{name: "1 % of statements fail", habits: emulation.Habits{FailStatements: 0.01}},
		{name: "5 % of statements fail", habits: emulation.Habits{FailStatements: 0.05}},
		{name: "30 % of statements fail", habits: emulation.Habits{FailStatements: 0.3}},
		{name: "1 % of commits fail", habits: emulation.Habits{FailCommits: 0.01}},
		{name: "5 % of commits fail", habits: emulation.Habits{FailCommits: 0.05}},
		{name: "30 % of commits fail", habits: emulation.Habits{FailCommits: 0.3}},
		{name: "answers to 1 % of commits get lost", habits: emulation.Habits{DropCommits: 0.01}, sudden: true},
		{name: "5 ms a round trip", habits: emulation.Habits{Delay: quorum}},
		{
			name:   "5 ms, 5 % of statements and commits fail, 1 % of answers get lost",
			habits: emulation.Habits{Delay: quorum, FailStatements: 0.05, FailCommits: 0.05, DropCommits: 0.01}, sudden: true,
		},
	} {
		h.habits.Seed = seed
		list = append(list, ground{
			name: "leases, " + h.name, engine: pgbaton.EngineLease, refused: pgbaton.ErrUnsupportedServer, prepare: stubbed(sessionLocks),
			habits: h.habits, sudden: h.sudden,
		})
	}
	return list
}

const (
	quorum = 5 * time.Millisecond
	seed   = 20261128
)

func bouncer(t *testing.T, dsn string) string {
	t.Helper()
	return lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 10", "max_client_conn = 400")
}

// isolated makes a database whose transactions are of another isolation by themselves.
func isolated(level string) func(t *testing.T) (clients, control string) {
	return func(t *testing.T) (string, string) {
		t.Helper()
		dsn := testkit.Migrated(t)
		isolate(t, dsn, level)
		return dsn, dsn
	}
}

func isolate(t *testing.T, dsn, level string) {
	t.Helper()
	conn := testkit.Connect(t, dsn)
	name := testkit.Value[string](t, conn, "SELECT quote_ident(current_database())")
	testkit.Exec(t, conn, fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = '%s'", name, level))
}

// portable makes a database with the portable schema on a server that can run no other: its advisory locks are forbidden, or stubs. Its
// transactions are of an isolation by themselves, if one is given.
func portable(stubs bool, level string) func(t *testing.T) (clients, control string) {
	return func(t *testing.T) (string, string) {
		t.Helper()
		clients, control := testkit.Poor(t, stubs)
		if level != "" {
			isolate(t, control, level)
		}
		require.NoError(t, pgbaton.Migrate(t.Context(), clients))
		return clients, control
	}
}

const (
	sessionLocks = `^pg_(try_)?advisory_(un)?lock(_shared|_all)?$`
	allLocks     = `^pg_(try_)?advisory_(xact_|un)?lock(_shared|_all)?$`
)

// stubbed makes a database whose advisory locks, those with such names, say that all is well and exclude nobody.
func stubbed(names string) func(t *testing.T) (clients, control string) {
	return func(t *testing.T) (string, string) {
		t.Helper()
		dsn := testkit.Migrated(t)
		testkit.Run(t, dsn, strings.ReplaceAll(`DO $do$ DECLARE f record; BEGIN
			FOR f IN SELECT p.oid::regprocedure AS signature, pg_get_function_result(p.oid) AS result FROM pg_proc AS p
			          WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ 'NAMES' LOOP
				EXECUTE format('CREATE OR REPLACE FUNCTION pg_catalog.%s RETURNS %s LANGUAGE sql VOLATILE AS %L', f.signature, f.result,
					CASE f.result WHEN 'boolean' THEN 'SELECT true' ELSE 'SELECT' END);
			END LOOP; END $do$`, "NAMES", names))
		return dsn, dsn
	}
}

// enginesVariable names a user's own servers: URLs of databases in which everything may be done, or images of Docker, with commas.
const enginesVariable = "PGBATON_TEST_ENGINES"

// foreign are the servers that the variable names; then the suite runs on these alone.
func foreign() (list []ground) {
	for name := range strings.SplitSeq(os.Getenv(enginesVariable), ",") {
		if name = strings.TrimSpace(name); name != "" {
			list = append(list, ground{name: "leases, " + nameOf(name), engine: pgbaton.EngineLease, foreign: true, prepare: func(t *testing.T) (string, string) {
				t.Helper()
				dsn := foreignDatabase(t, name)
				return dsn, dsn
			}})
		}
	}
	return list
}

// nameOf returns what a user's server is called in the table: without the password.
func nameOf(server string) string {
	if _, address, ok := strings.Cut(server, "@"); ok {
		server = address
	}
	before, _, _ := strings.Cut(server, "?")
	return strings.TrimPrefix(strings.TrimPrefix(before, "postgres://"), "postgresql://")
}

// revoked makes a database in which the service's role may not call the session's advisory functions.
func revoked(t *testing.T) (clients, control string) {
	t.Helper()
	role := testkit.Role(t)
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	testkit.Exec(t, conn, "SELECT pgbaton.grant_service($1)", role)
	rows, err := conn.Query(t.Context(), "SELECT p.oid::regprocedure::text FROM pg_proc AS p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ $1", sessionLocks)
	require.NoError(t, err)
	var signature string
	var all []string
	for rows.Next() {
		require.NoError(t, rows.Scan(&signature))
		all = append(all, signature)
	}
	require.NoError(t, rows.Err())
	require.NotEmpty(t, all)
	for _, signature := range all {
		testkit.Exec(t, conn, "REVOKE EXECUTE ON FUNCTION pg_catalog."+signature+" FROM PUBLIC")
	}
	return testkit.As(t, dsn, role), dsn
}
