package migrate_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"testing"

	"github.com/golang-migrate/migrate/v4"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

// Each row of what the version table may say, with each state of the schema. What is there decides.
func TestMigrate_LooksAtTheSchema(t *testing.T) {
	t.Parallel()
	old, last := versions[1], newest
	right := rightCatalog(t)
	none := func(t *testing.T, conn *pgx.Conn) { t.Helper() }
	at := func(n int) func(*testing.T, *pgx.Conn) {
		return func(t *testing.T, conn *pgx.Conn) {
			t.Helper()
			testkit.Exec(t, conn, sqlOf(t, n))
		}
	}
	type state struct {
		name    string
		make    func(*testing.T, *pgx.Conn)
		version int
	}
	states := []state{
		{"NoSchema", none, 0},
		{"Old", at(2), old},
		{"Newest", at(len(versions)), last},
		{"Newer", func(t *testing.T, conn *pgx.Conn) {
			t.Helper()
			at(len(versions))(t, conn)
			testkit.Exec(t, conn, saysVersion(last+1))
		}, last + 1},
	}
	rows := map[string]string{
		"NoTable": "", "NoRow": tableSQL,
		"Negative": rowSQL(-1, false), "Old": rowSQL(old, false), "Newest": rowSQL(last, false),
		"Newer": rowSQL(last+1, false), "Far": rowSQL(999, false),
		"Two":            rowSQL(1, false) + "; INSERT INTO pgbaton_schema_migrations VALUES (2, false)",
		"Dirty/Negative": rowSQL(-1, true), "Dirty/Old": rowSQL(old, true),
		"Dirty/Next": rowSQL(versions[2], true), "Dirty/Newest": rowSQL(last, true), "Dirty/Newer": rowSQL(last+1, true),
	}
	for i, state := range states {
		for j, name := range slices.Sorted(maps.Keys(rows)) {
			if testing.Short() && (i+j)%len(states) != 0 {
				continue // each row with one state
			}
			row := rows[name]
			t.Run(state.name+"/Row/"+name, func(t *testing.T) {
				t.Parallel()
				dsn := testkit.Empty(t)
				conn := testkit.Connect(t, dsn)
				state.make(t, conn)
				testkit.Exec(t, conn, row)
				err := pgbaton.Migrate(t.Context(), dsn)
				dirty := len(name) > 5 && name[:5] == "Dirty"
				if dirty && (state.version > last || state.version > 0 && name == "Dirty/Newer") {
					// Nobody here knows what that version makes.
					require.ErrorIs(t, err, pgbaton.ErrSchema)
					require.ErrorContains(t, err, `in "public"."pgbaton_schema_migrations" is dirty`)
					require.ErrorContains(t, err, fmt.Sprintf("The schema says version %d,", state.version))
					require.ErrorContains(t, err, "force")
					return
				}
				require.NoError(t, err)
				want := max(last, state.version)
				require.Equal(t, fmt.Sprintf("{(%d,f)}", want), versionRows(t, conn))
				require.Equal(t, int32(want), testkit.Value[int32](t, conn, "SELECT version FROM pgbaton.schema_version()"))
				if want == last {
					require.Equal(t, right, catalog(t, dsn))
				}
				require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
			})
		}
	}
}

const tableSQL = "CREATE TABLE pgbaton_schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)"

func rowSQL(version int, dirty bool) string {
	return fmt.Sprintf("%s; INSERT INTO pgbaton_schema_migrations VALUES (%d, %t)", tableSQL, version, dirty)
}

func saysVersion(version int) string {
	return fmt.Sprintf(`CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE BEGIN ATOMIC SELECT %d, 1; END`, version)
}

func versionRows(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	return testkit.Value[string](t, conn, `SELECT replace(array_agg(v ORDER BY v)::text, '"', '') FROM pgbaton_schema_migrations AS v`)
}

// A schema that lacks something, or is something else, is an error that says what, and each has a way out.
func TestMigrate_DamagedSchema(t *testing.T) {
	t.Parallel()
	for damage, c := range map[string]struct{ says, mend string }{
		"DROP TABLE pgbaton.slot CASCADE":                        {"table slot", dropSchema},
		"DROP SEQUENCE pgbaton.token CASCADE":                    {"sequence token", dropSchema},
		"DROP FUNCTION pgbaton.key(text) CASCADE":                {"lacks function key", dropSchema},
		"DROP TABLE pgbaton.fence, pgbaton.incarnation CASCADE":  {"table fence, table incarnation", dropSchema},
		"DROP FUNCTION pgbaton.schema_version()":                 {"has no function schema_version()", dropSchema},
		dropSchema + "; CREATE SCHEMA pgbaton":                   {"DROP SCHEMA pgbaton", "DROP SCHEMA pgbaton"},
		dropSchema + "; CREATE SCHEMA pgbaton CREATE TABLE t ()": {"is not what the migrations make", "ALTER SCHEMA pgbaton RENAME TO other"},
		"CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer) " +
			"LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RAISE ''trapped''; END'": {"has no function schema_version() that says", saysVersion(newest)},
	} {
		versionTable := []string{"UPDATE pgbaton_schema_migrations SET dirty = true", "DROP TABLE pgbaton_schema_migrations"}
		for _, rows := range testkit.Brief(versionTable, versionTable[len(damage)%2:][:1]) {
			t.Run(damage+"/"+rows, func(t *testing.T) {
				t.Parallel()
				dsn := migrated(t)
				conn := testkit.Connect(t, dsn)
				testkit.Exec(t, conn, "SET client_min_messages = error; "+damage+";"+rows)
				err := pgbaton.Migrate(t.Context(), dsn)
				require.ErrorIs(t, err, pgbaton.ErrSchema)
				require.ErrorContains(t, err, c.says)
				testkit.Exec(t, conn, c.mend)
				require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
				require.Equal(t, rightCatalog(t), catalog(t, dsn))
			})
		}
	}
}

const dropSchema = "DROP SCHEMA pgbaton CASCADE"

// golang-migrate's drop takes the tables of the current schema: the version table goes, the schema stays.
func TestMigrate_GolangMigrate_Drop(t *testing.T) {
	t.Parallel()
	dsn := migrated(t)
	conn := testkit.Connect(t, dsn)
	token := testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()")
	require.NoError(t, golangMigrate(t, dsn).Drop())
	require.False(t, testkit.Value[bool](t, conn, "SELECT to_regclass('pgbaton_schema_migrations') IS NOT NULL"))

	// Its own up then begins from nothing, finds the schema and stays dirty.
	require.ErrorContains(t, golangMigrate(t, dsn).Up(), `schema "pgbaton" already exists`)
	var dirty migrate.ErrDirty
	require.ErrorAs(t, golangMigrate(t, dsn).Up(), &dirty)

	// The way out: Migrate looks at what is there, and golang-migrate goes on from it.
	require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
	require.Equal(t, rightCatalog(t), catalog(t, dsn))
	require.ErrorIs(t, golangMigrate(t, dsn).Up(), migrate.ErrNoChange)
	require.Greater(t, testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()"), token)

	// The other way out, without Migrate.
	require.NoError(t, golangMigrate(t, dsn).Drop())
	require.NoError(t, golangMigrate(t, dsn).Force(newest))
	require.ErrorIs(t, golangMigrate(t, dsn).Up(), migrate.ErrNoChange)
}

// A golang-migrate that was interrupted leaves a dirty version, whose file is there as a whole or not at all.
func TestMigrate_GolangMigrate_Dirty(t *testing.T) {
	t.Parallel()
	right := rightCatalog(t)

	t.Run("FailedAndRolledBack", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Empty(t)
		conn := testkit.Connect(t, dsn)
		tool := golangMigrate(t, dsn)
		require.NoError(t, tool.Migrate(uint(versions[3]))) //nolint:gosec // a small number
		testkit.Exec(t, conn, "CREATE TABLE pgbaton.leader ()")
		require.ErrorContains(t, tool.Up(), `"leader" already exists`)
		require.ErrorContains(t, pgbaton.Migrate(t.Context(), dsn), "it has table leader of a later version")
		testkit.Exec(t, conn, "DROP TABLE pgbaton.leader")
		require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
		require.Equal(t, right, catalog(t, dsn))
	})

	// Statement by statement, and not to the end: nothing proves how far.
	t.Run("HalfDone", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Empty(t)
		conn := testkit.Connect(t, dsn)
		testkit.Exec(t, conn, sqlOf(t, 5)+"DROP FUNCTION pgbaton.begin_run(text, interval, bigint);"+
			saysVersion(4)+";"+rowSQL(5, true))
		err := pgbaton.Migrate(t.Context(), dsn)
		require.ErrorContains(t, err, "version 5 in ")
		require.ErrorContains(t, err, "it has function keep_leaders, ")
		require.ErrorContains(t, err, "of a later version")
		file, err := fs.ReadFile(migrations.FS, "000005_leadership.down.sql")
		require.NoError(t, err)
		testkit.Exec(t, conn, "CREATE FUNCTION pgbaton.begin_run(text, interval, bigint) RETURNS void LANGUAGE sql AS '';"+string(file))
		require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
		require.Equal(t, right, catalog(t, dsn))
	})
}

// What is dropped behind Migrate's back is made again, however often, and tokens rise.
func TestMigrate_Dropped(t *testing.T) {
	t.Parallel()
	dsn := migrated(t)
	conn := testkit.Connect(t, dsn)
	var token int64
	for range 3 {
		next := testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()")
		require.Greater(t, next, token)
		token = next
		testkit.Exec(t, conn, "SET client_min_messages = error; "+dropSchema)
		errs := atOnce(slices.Repeat([]func() error{func() error { return pgbaton.Migrate(t.Context(), dsn) }}, 4))
		require.NoError(t, errors.Join(errs...))
		client, err := pgbaton.Open(t.Context(), dsn, nil)
		require.NoError(t, err)
		require.NoError(t, client.Close(t.Context()))
	}
}
