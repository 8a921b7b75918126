package tokens_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// unhurried keeps WAL that no commit waits for off the disk, for as long as a test takes.
var unhurried = []string{"wal_writer_delay", "10s", "wal_level", "minimal", "max_wal_senders", "0"}

// The ways to lose draws: nextval writes WAL once for 32 draws, and nobody waits for it if
// that was another's transaction, or if the commit does not.
var losses = map[string]func(t *testing.T, dsn string, h *history){
	"OpenNextval": func(t *testing.T, dsn string, h *history) {
		other, conn := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
		testkit.Exec(t, conn, "CHECKPOINT")
		testkit.Exec(t, other, "BEGIN; SELECT nextval('pgbaton.token')")
		h.draw(t, conn, 20)
	},
	"AsynchronousCommit": func(t *testing.T, dsn string, h *history) {
		conn := testkit.Connect(t, dsn)
		testkit.Exec(t, conn, "SET synchronous_commit = off; CHECKPOINT")
		h.draw(t, conn, 20)
	},
}

// The ways to crash. Each returns when the server serves again.
var crashes = map[string]func(t *testing.T, server *pgserver.Server){
	"BackendKilled": func(t *testing.T, server *pgserver.Server) {
		victim, witness := testkit.Connect(t, server.URL()), testkit.Connect(t, server.URL())
		require.NoError(t, syscall.Kill(pidOf(victim), syscall.SIGKILL))
		// The server ends every other session when it has noticed.
		_, err := witness.Exec(t.Context(), "SELECT pg_sleep(60)")
		require.Error(t, err)
		waitUp(t, server.URL())
	},
	"ServerKilled": func(t *testing.T, server *pgserver.Server) {
		require.NoError(t, syscall.Kill(server.PID(), syscall.SIGKILL))
		require.NoError(t, server.Restart(t.Context(), "immediate"))
	},
	"ImmediateShutdown": func(t *testing.T, server *pgserver.Server) {
		require.NoError(t, server.Restart(t.Context(), "immediate"))
	},
}

func TestTokens_Crash(t *testing.T) {
	t.Parallel()
	everyMajor(t, crashInEveryWay)
}

func crashInEveryWay(t *testing.T, bindir string) {
	t.Helper()
	server := start(t, bindir, none, unhurried...)
	var h history
	for crashName, crash := range crashes {
		for lossName, lose := range losses {
			h.grant(t, server.URL())
			lose(t, server.URL(), &h)
			crash(t, server)
			if lossName == "OpenNextval" { // a client comes first, or SQL does
				h.grant(t, server.URL())
			}
			h.draw(t, testkit.Connect(t, server.URL()), 3)
			require.Empty(t, h.violations, "%s, %s", crashName, lossName)
		}
	}
	h.require(t, none)
}

// The same crashes make these mistakes visible.
func TestTokens_CrashOfMutants(t *testing.T) {
	t.Parallel()
	bindir := withPrograms(t, "initdb")
	for name, mutant := range map[string]string{"BareNextval": bareNextval, "NoIncarnationCheck": noCheck} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t, bindir, mutant, unhurried...)
			for crashName, crash := range crashes {
				for lossName, lose := range losses {
					t.Log(crashName, lossName)
					// The WAL may have reached the disk all the same.
					var h history
					for range 5 {
						lose(t, server.URL(), &h)
						crash(t, server)
						h.draw(t, testkit.Connect(t, server.URL()), 1)
						if len(h.violations) > 0 {
							break
						}
					}
					h.require(t, mutant)
				}
			}
		})
	}
}

// A table that was SET LOGGED survives the crash with its row, which therefore does not count. (Clients refuse it.)
func TestTokens_CrashOfALoggedTable(t *testing.T) {
	t.Parallel()
	server := start(t, withPrograms(t, "initdb"), "ALTER TABLE pgbaton.incarnation SET LOGGED", unhurried...)
	var h history
	for range 3 {
		losses["OpenNextval"](t, server.URL(), &h)
		crashes["BackendKilled"](t, server)
		h.draw(t, testkit.Connect(t, server.URL()), 3)
	}
	h.require(t, none)
}

// A clean restart loses nothing, and the token needs no jump; it may make one, as the start of the server
// is all that is known of it.
func TestTokens_CleanRestart(t *testing.T) {
	t.Parallel()
	bindir := withPrograms(t, "initdb")
	server := start(t, bindir, none)
	var h history
	for range 2 {
		h.grant(t, server.URL())
		h.draw(t, testkit.Connect(t, server.URL()), 20)
		require.NoError(t, server.Restart(t.Context(), "fast"))
	}
	h.draw(t, testkit.Connect(t, server.URL()), 1)
	h.require(t, none)
}
