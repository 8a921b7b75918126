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
	"github.com/pgbaton/pgbaton/internal/testkit"
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
			target := testkit.EmptyOn(t, server.URL())
			run(t, server.BinDir(), "pg_restore", "--exit-on-error", "-d", target, dump)
			require.NoError(t, pgbaton.Migrate(t.Context(), target))
			require.Equal(t, fmt.Sprintf("{(%d,f)}", newest), versionRows(t, testkit.Connect(t, target)))
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
		testkit.Run(t, dsn, "CREATE TABLE account (name text); SELECT pgbaton.next_token()")
	}
	testkit.Run(t, source, "INSERT INTO account VALUES ('one')")
	dir := t.TempDir()
	all, without := filepath.Join(dir, "all"), filepath.Join(dir, "without")
	run(t, server.BinDir(), "pg_dump", "-Fc", "--data-only", "-f", all, "-d", source)
	out, err := exec.CommandContext(t.Context(), filepath.Join(server.BinDir(), "pg_restore"), "--exit-on-error", "-d", target, all).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "pgbaton_schema_migrations_pkey")

	run(t, server.BinDir(), "pg_dump", "-Fc", "--data-only", "--exclude-schema=pgbaton", "--exclude-table=pgbaton_schema_migrations",
		"-f", without, "-d", source)
	conn := testkit.Connect(t, target)
	testkit.Exec(t, conn, "TRUNCATE account")
	before := testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()")
	run(t, server.BinDir(), "pg_restore", "--exit-on-error", "-d", target, without)
	require.Equal(t, "one", testkit.Value[string](t, conn, "SELECT name FROM account"))
	require.Greater(t, testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()"), before)
}

// Services with names that need quotes are there again after a dump and restore, if the roles are.
func TestCopies_Grantees(t *testing.T) {
	t.Parallel()
	server := serverWithDump(t)
	role := `Odd "role" ` + rand.Text()
	quoted := `"` + strings.ReplaceAll(role, `"`, `""`) + `"`
	testkit.Run(t, server.URL(), "CREATE ROLE "+quoted)
	source, target := migratedOn(t, server), testkit.EmptyOn(t, server.URL())
	testkit.Exec(t, testkit.Connect(t, source), `INSERT INTO pgbaton.grantee (role, operator) VALUES ($1::text::regrole, false)`, quoted)
	dump := filepath.Join(t.TempDir(), "dump")
	run(t, server.BinDir(), "pg_dump", "-Fc", "-f", dump, "-d", source)
	run(t, server.BinDir(), "pg_restore", "--exit-on-error", "-d", target, dump)
	require.Equal(t, quoted, testkit.Value[string](t, testkit.Connect(t, target), "SELECT role::text FROM pgbaton.grantee"))
}

// Under a publication of all tables everything works, since each published table has a key; and a subscriber that has the
// schema follows.
func TestCopies_Publication(t *testing.T) {
	t.Parallel()
	server, other := lab.OwnServer(t, map[string]string{"wal_level": "logical"}), lab.OwnServer(t, map[string]string{"wal_level": "logical"})
	source, target := migratedOn(t, server), migratedOn(t, other)
	conn, copied := testkit.Connect(t, source), testkit.Connect(t, target)
	require.Equal(t, "{}", testkit.Value[string](t, conn, `
		SELECT coalesce(array_agg(c.oid::regclass), '{}')::text FROM pg_class AS c
		WHERE (c.relnamespace = 'pgbaton'::regnamespace OR c.relname = 'pgbaton_schema_migrations')
		  AND c.relkind = 'r' AND c.relpersistence = 'p'
		  AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND (i.indisprimary OR i.indisreplident))`),
		"tables without a replica identity")
	testkit.Exec(t, conn, "CREATE PUBLICATION everything FOR ALL TABLES")
	testkit.Exec(t, copied, "CREATE TABLE account (name text PRIMARY KEY, version bigint NOT NULL); TRUNCATE pgbaton_schema_migrations")
	testkit.Exec(t, copied, "CREATE SUBSCRIPTION copy CONNECTION '"+source+"' PUBLICATION everything")
	useEverything(t, source, source, "published")
	testkit.WaitFor(t, copied, "SELECT EXISTS (SELECT FROM pgbaton.fence WHERE resource = 'of published')")
	testkit.WaitFor(t, copied, "SELECT EXISTS (SELECT FROM pgbaton.semaphore WHERE name = 'published')")
	require.NoError(t, pgbaton.Migrate(t.Context(), target))

	// Sequences do not follow: on a subscriber that takes over, the next semaphore would get a number that is taken.
	testkit.Exec(t, copied, "ALTER SUBSCRIPTION copy DISABLE; ALTER SUBSCRIPTION copy SET (slot_name = NONE)")
	testkit.Exec(t, copied, "DROP SUBSCRIPTION copy")
	testkit.Exec(t, copied, `SELECT setval(pg_get_serial_sequence('pgbaton.semaphore', 'id'), max(id)) FROM pgbaton.semaphore`)
	require.Greater(t, testkit.Value[int64](t, copied, "SELECT pgbaton.next_token()"), testkit.Value[int64](t, copied,
		"SELECT max(token) FROM pgbaton.fence"))
	testkit.Exec(t, copied, "DROP TABLE account")
	useEverything(t, target, target, "subscriber")
	testkit.Exec(t, conn, "SELECT pg_drop_replication_slot('copy')")
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
