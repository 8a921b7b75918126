package tokens_test

import (
	"net/url"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Each copy is older than what the original hands out after it, and is used later.
var mutantsOfCopies = map[string]string{"None": none, "RowOnly": rowOnly}

// A dump that is older than what the original has handed out since.
func TestTokens_DumpAndRestore(t *testing.T) {
	t.Parallel()
	bindir := withPrograms(t, "pg_dump", "pg_restore")
	for name, mutant := range mutantsOfCopies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, elsewhere := start(t, bindir, mutant), startEmpty(t, bindir)
			testkit.Exec(t, testkit.Connect(t, server.URL()), "CREATE DATABASE restored")
			dump := filepath.Join(t.TempDir(), "dump")
			var original history
			original.draw(t, testkit.Connect(t, server.URL()), 3)
			command(t, bindir, "pg_dump", "-Fc", "-f", dump, "-d", server.URL())
			original.grant(t, server.URL())
			original.draw(t, testkit.Connect(t, server.URL()), 100)

			for _, dsn := range []string{withDatabase(t, server.URL(), "restored"), elsewhere.URL()} {
				h := original
				command(t, bindir, "pg_restore", "-d", dsn, dump)
				h.draw(t, testkit.Connect(t, dsn), 3)
				h.grant(t, dsn)
				h.require(t, mutant)
			}
		})
	}
}

// The data directory of a server that was shut down cleanly, started beside the original.
func TestTokens_ColdCopy(t *testing.T) {
	t.Parallel()
	for name, mutant := range mutantsOfCopies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			coldCopy := func(t *testing.T, bindir string) {
				server := start(t, bindir, mutant)
				var h history
				h.draw(t, testkit.Connect(t, server.URL()), 3)
				lab.PgCtl(t, server, server.DataDir(), "stop", "-m", "fast")
				cold := lab.CopyOf(t, server)
				require.NoError(t, server.Restart(t.Context(), "fast"))
				h.grant(t, server.URL())
				h.draw(t, testkit.Connect(t, server.URL()), 100)
				dsn := cold.Start(t)
				h.draw(t, testkit.Connect(t, dsn), 3)
				h.grant(t, dsn)
				h.require(t, mutant)
			}
			if mutant == none {
				everyMajor(t, coldCopy)
			} else {
				coldCopy(t, withPrograms(t, "initdb"))
			}
		})
	}
}

// A database that was made from the original as its template, and replaces it later.
func TestTokens_Template(t *testing.T) {
	t.Parallel()
	for name, mutant := range mutantsOfCopies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn, other := testkit.Migrated(t), testkit.Empty(t)
			conn := testkit.Connect(t, dsn)
			var h history
			h.draw(t, conn, 3)
			testkit.Exec(t, conn, mutant)
			require.NoError(t, conn.Close(t.Context())) // a template has no sessions
			admin := testkit.Connect(t, withDatabase(t, dsn, "postgres"))
			testkit.Exec(t, admin, "DROP DATABASE "+nameOf(t, other))
			testkit.Exec(t, admin, "CREATE DATABASE "+nameOf(t, other)+" TEMPLATE "+nameOf(t, dsn))
			h.grant(t, dsn)
			h.draw(t, testkit.Connect(t, dsn), 100)
			h.draw(t, testkit.Connect(t, other), 3)
			h.grant(t, other)
			h.require(t, mutant)
		})
	}
}

// pg_upgrade keeps the oids and copies the files; here to a new cluster of the same major, for which the programs
// are at hand. The original goes on in between.
func TestTokens_Upgrade(t *testing.T) {
	t.Parallel()
	bindir := withPrograms(t, "pg_upgrade", "pg_dump", "pg_dumpall", "pg_restore", "psql", "pg_resetwal", "vacuumdb")
	server := start(t, bindir, none)
	dir := filepath.Dir(server.DataDir())
	upgraded := &lab.Replica{Of: server, Data: filepath.Join(dir, "upgraded")}
	var h history
	h.draw(t, testkit.Connect(t, server.URL()), 3)
	lab.PgCtl(t, server, server.DataDir(), "stop", "-m", "fast")
	u, err := url.Parse(server.URL())
	require.NoError(t, err)
	password, _ := u.User.Password()
	lab.RunAs(t, server, "initdb", "-D", upgraded.Data, "-U", u.User.Username(), "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	lab.RunAs(t, server, "env", "PGPASSWORD="+password, filepath.Join(bindir, "pg_upgrade"), "-U", u.User.Username(),
		"-b", bindir, "-B", bindir, "-d", server.DataDir(), "-D", upgraded.Data, "-s", dir)
	lab.PgCtl(t, server, server.DataDir(), "start", "-l", server.LogFile()) // a restart would use pg_upgrade's options
	h.grant(t, server.URL())
	h.draw(t, testkit.Connect(t, server.URL()), 100)

	dsn := upgraded.Start(t, "listen_addresses=127.0.0.1", "unix_socket_directories="+dir)
	h.draw(t, testkit.Connect(t, dsn), 3)
	h.grant(t, dsn)
	h.require(t, none)
}

// The schema is taken away and made again, soon after a repair.
func TestTokens_DownAndUp(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	migrate(t, dsn)
	conn := testkit.Connect(t, dsn)
	var h history
	for range 3 {
		h.grant(t, dsn)
		h.draw(t, conn, 100)
		testkit.Exec(t, conn, "DROP SCHEMA pgbaton CASCADE; DROP TABLE pgbaton_schema_migrations")
		migrate(t, dsn)
	}
	h.grant(t, dsn)
	h.require(t, none)
}

func command(t *testing.T, bindir, program string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(bindir, program), args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", program, out)
}
