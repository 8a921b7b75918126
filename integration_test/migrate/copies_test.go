package migrate_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// A restore of the schema without the version table, and of the version table without the schema.
func TestCopies_RestoreOfAPart(t *testing.T) {
	t.Parallel()
	server := serverWithDump(t)
	source := migratedOn(t, server)
	for _, part := range [][]string{{"-n", "pgbaton"}, {"-t", "pgbaton_schema_migrations"}, {}} {
		t.Run(strings.Join(part, "_"), func(t *testing.T) {
			t.Parallel()
			dump := filepath.Join(t.TempDir(), "dump")
			run(t, server.BinDir(), "pg_dump", append([]string{"-Fc", "-f", dump, "-d", source}, part...)...)
			target := dbtest.EmptyOn(t, server.URL())
			run(t, server.BinDir(), "pg_restore", "--exit-on-error", "-d", target, dump)
			require.NoError(t, pgbaton.Migrate(t.Context(), target))
			require.Equal(t, fmt.Sprintf("{(%d,f)}", newest), versionRows(t, dbtest.Connect(t, target)))
			useEverything(t, target, target, "copy")
		})
	}
}

// Data alone stops at a row that is there already. Without the schema's data it passes.
func TestCopies_DataOnly(t *testing.T) {
	t.Parallel()
	server := serverWithDump(t)
	source, target := migratedOn(t, server), migratedOn(t, server)
	for _, dsn := range []string{source, target} {
		dbtest.Run(t, dsn, "CREATE TABLE account (name text); SELECT pgbaton.next_token()")
	}
	dbtest.Run(t, source, "INSERT INTO account VALUES ('one')")
	dir := t.TempDir()
	all, without := filepath.Join(dir, "all"), filepath.Join(dir, "without")
	run(t, server.BinDir(), "pg_dump", "-Fc", "--data-only", "-f", all, "-d", source)
	out, err := exec.CommandContext(t.Context(), filepath.Join(server.BinDir(), "pg_restore"), "--exit-on-error", "-d", target, all).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "pgbaton_schema_migrations_pkey")

	run(t, server.BinDir(), "pg_dump", "-Fc", "--data-only", "--exclude-schema=pgbaton", "--exclude-table=pgbaton_schema_migrations",
		"-f", without, "-d", source)
	conn := dbtest.Connect(t, target)
	dbtest.Exec(t, conn, "TRUNCATE account")
	before := dbtest.Value[int64](t, conn, "SELECT pgbaton.next_token()")
	run(t, server.BinDir(), "pg_restore", "--exit-on-error", "-d", target, without)
	require.Equal(t, "one", dbtest.Value[string](t, conn, "SELECT name FROM account"))
	require.Greater(t, dbtest.Value[int64](t, conn, "SELECT pgbaton.next_token()"), before)
}

// Services with names that need quotes are there again after a dump and restore, if the roles are.
func TestCopies_Grantees(t *testing.T) {
	t.Parallel()
	server := serverWithDump(t)
	role := `Odd "role" ` + rand.Text()
	quoted := `"` + strings.ReplaceAll(role, `"`, `""`) + `"`
	dbtest.Run(t, server.URL(), "CREATE ROLE "+quoted)
	source, target := migratedOn(t, server), dbtest.EmptyOn(t, server.URL())
	dbtest.Exec(t, dbtest.Connect(t, source), `INSERT INTO pgbaton.grantee (role, operator) VALUES ($1::text::regrole, false)`, quoted)
	dump := filepath.Join(t.TempDir(), "dump")
	run(t, server.BinDir(), "pg_dump", "-Fc", "-f", dump, "-d", source)
	run(t, server.BinDir(), "pg_restore", "--exit-on-error", "-d", target, dump)
	require.Equal(t, quoted, dbtest.Value[string](t, dbtest.Connect(t, target), "SELECT role::text FROM pgbaton.grantee"))
}

// Under a publication of all tables everything works, since each published table has a key; and a subscriber that has the
// schema follows.
func TestCopies_Publication(t *testing.T) {
	t.Parallel()
	server, other := lab.OwnServer(t, map[string]string{"wal_level": "logical"}), lab.OwnServer(t, map[string]string{"wal_level": "logical"})
	source, target := migratedOn(t, server), migratedOn(t, other)
	conn, copied := dbtest.Connect(t, source), dbtest.Connect(t, target)
	require.Equal(t, "{}", dbtest.Value[string](t, conn, `
		SELECT coalesce(array_agg(c.oid::regclass), '{}')::text FROM pg_class AS c
		WHERE (c.relnamespace = 'pgbaton'::regnamespace OR c.relname = 'pgbaton_schema_migrations')
		  AND c.relkind = 'r' AND c.relpersistence = 'p'
		  AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident))`),
		"tables without a replica identity")
	dbtest.Exec(t, conn, "CREATE PUBLICATION everything FOR ALL TABLES")
	dbtest.Exec(t, copied, "CREATE TABLE account (name text PRIMARY KEY, version bigint NOT NULL); TRUNCATE pgbaton_schema_migrations")
	dbtest.Exec(t, copied, "CREATE SUBSCRIPTION copy CONNECTION '"+source+"' PUBLICATION everything")
	useEverything(t, source, source, "published")
	dbtest.WaitFor(t, copied, "SELECT EXISTS (SELECT FROM pgbaton.fence WHERE resource = 'of published')")
	dbtest.WaitFor(t, copied, "SELECT EXISTS (SELECT FROM pgbaton.semaphore WHERE name = 'published')")
	require.NoError(t, pgbaton.Migrate(t.Context(), target))

	// Sequences do not follow: on a subscriber that takes over, the next semaphore would get a number that is taken.
	dbtest.Exec(t, copied, "ALTER SUBSCRIPTION copy DISABLE; ALTER SUBSCRIPTION copy SET (slot_name = NONE)")
	dbtest.Exec(t, copied, "DROP SUBSCRIPTION copy")
	dbtest.Exec(t, copied, `SELECT setval(pg_get_serial_sequence('pgbaton.semaphore', 'id'), max(id)) FROM pgbaton.semaphore`)
	require.Greater(t, dbtest.Value[int64](t, copied, "SELECT pgbaton.next_token()"), dbtest.Value[int64](t, copied,
		"SELECT max(token) FROM pgbaton.fence"))
	dbtest.Exec(t, copied, "DROP TABLE account")
	useEverything(t, target, target, "subscriber")
	dbtest.Exec(t, conn, "SELECT pg_drop_replication_slot('copy')")
}

// serverWithDump starts a server whose programs have pg_dump, which not every installation has.
func serverWithDump(t *testing.T) *pgserver.Server {
	t.Helper()
	for _, dir := range pgserver.BinDirs() {
		if _, err := os.Stat(filepath.Join(dir, "pg_dump")); err == nil {
			server, err := pgserver.StartBinaries(t.Context(), dir)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
			return server
		}
	}
	require.FailNow(t, "this test needs pg_dump and pg_restore beside PostgreSQL's server programs")
	return nil
}

func run(t *testing.T, bindir, program string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(bindir, program), args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", program, out)
}
