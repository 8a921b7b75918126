package migrator

import (
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

func migrationFiles(files map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, sql := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(sql)}
	}
	return fsys
}

// says is the end of every file.
func says(version int) string {
	return fmt.Sprintf(`; CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT %d, 1;
END;`, version)
}

// A role whose settings make every plan look dear does not have each statement compiled.
func TestRun_CompilesNothing(t *testing.T) {
	t.Parallel()
	conn := testkit.Connect(t, testkit.Empty(t))
	testkit.Exec(t, conn, "SET jit = on; SET jit_above_cost = 0")
	require.NoError(t, Run(t.Context(), conn, migrationFiles(map[string]string{
		"000001_one.up.sql": "CREATE SCHEMA pgbaton; CREATE TABLE pgbaton.seen AS SELECT current_setting('jit') AS jit" + says(1),
	})))
	require.Equal(t, "off", testkit.Value[string](t, conn, "SELECT jit FROM pgbaton.seen"))
	require.Equal(t, "on", testkit.Value[string](t, conn, "SHOW jit"), "the session's own is left")
}

func TestRun_FailureLeavesNothing(t *testing.T) {
	t.Parallel()
	conn := testkit.Connect(t, testkit.Empty(t))

	// Files run with search_path = pg_catalog, so an unqualified name is refused.
	files := map[string]string{
		"000001_one.up.sql":   "CREATE SCHEMA pgbaton; CREATE TABLE one ()" + says(1),
		"000001_one.down.sql": "no SQL",
	}
	err := Run(t.Context(), conn, migrationFiles(files))
	require.ErrorContains(t, err, "apply 000001_one: ")
	require.Empty(t, tables(t, conn))

	files["000001_one.up.sql"] = "CREATE SCHEMA pgbaton; CREATE TABLE public.one ()" + says(1)
	files["000002_two.up.sql"] = "CREATE TABLE public.two (); CREATE TABLE public.two ()" + says(2)
	err = Run(t.Context(), conn, migrationFiles(files))
	require.ErrorContains(t, err, "apply 000002_two: ")
	require.ErrorContains(t, err, "SQLSTATE 42P07")
	require.Equal(t, []string{"one", "pgbaton_schema_migrations"}, tables(t, conn))
	require.Equal(t, int64(1), recordedVersion(t, conn))
	require.Equal(t, byte('I'), conn.PgConn().TxStatus())

	// Repaired, with more files: what is missing is applied, in the order of the numbers.
	files["000002_two.up.sql"] = "CREATE TABLE public.two ()" + says(2)
	files["000010_ten.up.sql"] = "ALTER TABLE public.nine RENAME TO ten" + says(10)
	files["9_nine.up.sql"] = "CREATE TABLE public.nine ()" + says(9)
	require.NoError(t, Run(t.Context(), conn, migrationFiles(files)))
	require.Equal(t, []string{"one", "pgbaton_schema_migrations", "ten", "two"}, tables(t, conn))
	require.Equal(t, int64(10), recordedVersion(t, conn))
	require.Equal(t, `"$user", public`, testkit.Value[string](t, conn, "SHOW search_path"))

	// A file that does not say its version would be applied for ever.
	files["000011_mute.up.sql"] = "CREATE TABLE public.mute ()"
	err = Run(t.Context(), conn, migrationFiles(files))
	require.ErrorContains(t, err, "apply 000011_mute: pgbaton.schema_version() says 10 after it, and must say 11")
	require.Equal(t, int64(10), recordedVersion(t, conn))
}

func TestRun_BadFileName(t *testing.T) {
	t.Parallel()
	err := Run(t.Context(), nil, migrationFiles(map[string]string{"first.up.sql": "SELECT 1"}))
	require.ErrorContains(t, err, "read files: first.up.sql: no version at its start")
}

// The lock of golang-migrate, as computed by golang-migrate.
func TestLockID(t *testing.T) {
	t.Parallel()
	require.Equal(t, int64(3686108022), lockID("app", "public"))
	require.Equal(t, int64(819178198), lockID("/app", "public"))
}

// Everything depends on it: each file, up and down, leaves a schema that says the version of the newest file, in words
// that are understood, and that has what the files are known to make.
func TestMigrations_SetTheSchemaVersion(t *testing.T) {
	t.Parallel()
	files, err := readMigrations(migrations.FS)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	conn := testkit.Connect(t, testkit.Empty(t))
	is := func(version int64) {
		t.Helper()
		found := lookAt(t, conn)
		require.Equal(t, version, found.version)
		require.Empty(t, without(made(files, version), found.objects))
		if version > 0 {
			require.Equal(t, version, testkit.Value[int64](t, conn, "SELECT version FROM pgbaton.schema_version()"))
		}
	}
	is(0)
	for _, file := range files {
		testkit.Exec(t, conn, file.sql)
		is(file.version)
	}
	known := made(files, newest(files))
	for _, object := range lookAt(t, conn).objects {
		require.True(t, slices.Contains(known, object) || testkit.Value[bool](t, conn, // an identity's sequence
			"SELECT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND deptype = 'i' "+
				"AND objid = to_regclass('pgbaton.' || split_part($1, ' ', 2)))", object), object)
	}
	for i, file := range slices.Backward(files) {
		sql, err := fs.ReadFile(migrations.FS, file.name+".down.sql")
		require.NoError(t, err)
		testkit.Exec(t, conn, string(sql))
		is(file.version - 1)
		if i > 0 {
			require.GreaterOrEqual(t, file.version-1, files[i-1].version)
		}
	}
}

func lookAt(t *testing.T, conn *pgx.Conn) schema {
	t.Helper()
	tx, err := conn.Begin(t.Context())
	require.NoError(t, err)
	found, err := look(t.Context(), tx)
	require.NoError(t, err)
	require.NoError(t, tx.Rollback(t.Context()))
	return found
}

func TestMade(t *testing.T) {
	t.Parallel()
	files := []migration{
		{version: 1, sql: "CREATE SCHEMA pgbaton;\nCREATE UNLOGGED TABLE pgbaton.a (\nCREATE SEQUENCE pgbaton.b AS bigint\n-- CREATE TABLE pgbaton.c"},
		{version: 3, sql: "CREATE OR REPLACE FUNCTION pgbaton.f() RETURNS\nDROP TABLE pgbaton.a;\n"},
		{version: 4, sql: "DROP FUNCTION pgbaton.f();\nCREATE FUNCTION pgbaton.f(integer)"},
		{version: 100, sql: "    CREATE VIEW pgbaton.v AS\n"},
	}
	require.Equal(t, []string{"sequence b", "table a"}, made(files, 1))
	require.Equal(t, []string{"sequence b", "table a"}, made(files, 2))
	require.Equal(t, []string{"function f", "sequence b"}, made(files, 3))
	require.Equal(t, []string{"function f", "sequence b"}, made(files, 99))
	require.Equal(t, []string{"function f", "sequence b", "view v"}, made(files, 100))
}

// A role that may not read the catalog's functions is told so, as of any other privilege.
func TestExplain(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	conn := testkit.Connect(t, dsn)
	testkit.Exec(t, conn, "SET ROLE pg_read_all_settings")
	err := Run(t.Context(), conn, migrations.FS)
	require.ErrorIs(t, err, lockerr.Schema)
	require.ErrorContains(t, err, `role "pg_read_all_settings" may not migrate: `)
	require.ErrorContains(t, err, "permission denied")
	require.NotContains(t, err.Error(), "pgbaton: ")
}

func tables(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

func recordedVersion(t *testing.T, conn *pgx.Conn) int64 {
	t.Helper()
	return testkit.Value[int64](t, conn, "SELECT version FROM pgbaton_schema_migrations WHERE NOT dirty")
}
