package pgbaton

import (
	"context"
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/migrations"
)

// migrateTestConn connects to a new database, which is dropped when the test ends.
func migrateTestConn(t *testing.T) *pgx.Conn {
	t.Helper()
	server := os.Getenv("DATABASE_URL")
	require.NotEmpty(t, server, "set DATABASE_URL to a PostgreSQL server on which databases may be created")
	ctx := context.Background() // also for clean-up
	admin, err := pgx.Connect(ctx, server)
	require.NoError(t, err)
	t.Cleanup(func() { _ = admin.Close(ctx) })
	name := "pgbaton_test_" + strings.ToLower(rand.Text())
	_, err = admin.Exec(ctx, "CREATE DATABASE "+name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
		require.NoError(t, err)
	})

	config := admin.Config()
	config.Database = name
	conn, err := pgx.ConnectConfig(ctx, config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(ctx) })
	return conn
}

func migrationFiles(files map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, sql := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(sql)}
	}
	return fsys
}

func TestMigrate_FailureLeavesNothing(t *testing.T) {
	t.Parallel()
	conn := migrateTestConn(t)

	// Files run with search_path = pg_catalog, so an unqualified name is refused.
	files := map[string]string{
		"000001_one.up.sql":   "CREATE TABLE one (); SELECT 1",
		"000001_one.down.sql": "no SQL",
	}
	err := migrate(t.Context(), conn, migrationFiles(files))
	require.ErrorContains(t, err, "pgbaton: migrate: apply 000001_one: ")
	require.Empty(t, tables(t, conn))

	files["000001_one.up.sql"] = "CREATE TABLE public.one (); SELECT 1"
	files["000002_two.up.sql"] = "CREATE TABLE public.two (); CREATE TABLE public.two ()"
	err = migrate(t.Context(), conn, migrationFiles(files))
	require.ErrorContains(t, err, "pgbaton: migrate: apply 000002_two: ")
	require.ErrorContains(t, err, "SQLSTATE 42P07")
	require.Equal(t, []string{"one", "pgbaton_schema_migrations"}, tables(t, conn))
	require.Equal(t, int64(1), recordedVersion(t, conn))
	require.Equal(t, byte('I'), conn.PgConn().TxStatus())

	// Repaired, with more files: what is missing is applied, in the order of the numbers.
	files["000002_two.up.sql"] = "CREATE TABLE public.two ()"
	files["000010_ten.up.sql"] = "ALTER TABLE public.nine RENAME TO ten"
	files["9_nine.up.sql"] = "CREATE TABLE public.nine ()"
	require.NoError(t, migrate(t.Context(), conn, migrationFiles(files)))
	require.Equal(t, []string{"one", "pgbaton_schema_migrations", "ten", "two"}, tables(t, conn))
	require.Equal(t, int64(10), recordedVersion(t, conn))
	require.Equal(t, `"$user", public`, queryValue[string](t, conn, "SHOW search_path"))
}

func TestMigrate_BadFileName(t *testing.T) {
	t.Parallel()
	err := migrate(t.Context(), nil, migrationFiles(map[string]string{"first.up.sql": "SELECT 1"}))
	require.ErrorContains(t, err, "pgbaton: migrate: read files: first.up.sql: no version at its start")
}

// The lock of golang-migrate, as computed by golang-migrate.
func TestMigrateLockID(t *testing.T) {
	t.Parallel()
	require.Equal(t, int64(3686108022), migrateLockID("app", "public"))
	require.Equal(t, int64(819178198), migrateLockID("/app", "public"))
}

// Adoption depends on it: the schema's version is the number of the newest file.
func TestMigrations_SetTheSchemaVersion(t *testing.T) {
	t.Parallel()
	files, err := readMigrations(migrations.FS)
	require.NoError(t, err)
	require.NotEmpty(t, files)
	conn := migrateTestConn(t)
	for i, file := range files {
		require.Equal(t, int64(i+1), file.version, "the versions have no gap")
		require.FileExists(t, "migrations/"+file.name+".down.sql")
		_, err := conn.PgConn().Exec(t.Context(), file.sql).ReadAll()
		require.NoError(t, err)
		require.Equal(t, file.version, queryValue[int64](t, conn, "SELECT version FROM pgbaton.schema_version()"))
	}
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
	return queryValue[int64](t, conn, "SELECT version FROM pgbaton_schema_migrations WHERE NOT dirty")
}

// queryValue returns the one value of a query.
func queryValue[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return value
}
