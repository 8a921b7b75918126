package tokens_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// replica is a copy of a server's data directory. It lies beside the original, so that nothing is left of it
// whatever becomes of the test.
type replica struct {
	of   *pgserver.Server
	data string
}

// copyOf copies the data directory as it is.
func copyOf(t *testing.T, server *pgserver.Server) *replica {
	t.Helper()
	r := &replica{of: server, data: filepath.Join(filepath.Dir(server.DataDir()), "copy")}
	runAs(t, server, "cp", "-a", server.DataDir(), r.data)
	require.NoError(t, os.RemoveAll(filepath.Join(r.data, "postmaster.pid")))
	return r
}

// start starts the copy on a port of its own and returns its URL.
func (r *replica) start(t *testing.T, settings ...string) string {
	t.Helper()
	port := freePort(t)
	options := fmt.Sprintf("-p %d", port)
	for _, setting := range settings {
		options += fmt.Sprintf(" -c %s", setting)
	}
	pgCtl(t, r.of, r.data, "start", "-o", options, "-l", r.data+".log")
	t.Cleanup(func() {
		// A test's context has ended by now.
		cmd := commandAs(context.Background(), t, r.of, "pg_ctl", "stop", "-D", r.data, "-m", "immediate")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
	u, err := url.Parse(r.of.URL())
	require.NoError(t, err)
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return u.String()
}

func pgCtl(t *testing.T, server *pgserver.Server, data, verb string, args ...string) {
	t.Helper()
	runAs(t, server, "pg_ctl", append([]string{verb, "-w", "-D", data}, args...)...)
}

func runAs(t *testing.T, server *pgserver.Server, program string, args ...string) {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "") // not a pipe: a server that is started would keep it open
	require.NoError(t, err)
	defer log.Close()
	cmd := commandAs(t.Context(), t, server, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		require.NoError(t, err, "%v: %s", args, text)
	}
}

// commandAs prepares a program of the server, or one of the system's, to run as the user that owns the data.
func commandAs(ctx context.Context, t *testing.T, server *pgserver.Server, program string, args ...string) *exec.Cmd {
	t.Helper()
	if has(server.BinDir(), program) {
		program = filepath.Join(server.BinDir(), program)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = filepath.Dir(server.DataDir())
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	info, err := os.Stat(server.DataDir())
	require.NoError(t, err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	require.True(t, ok)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	}
	return cmd
}

func freePort(t *testing.T) int {
	t.Helper()
	for range 50 {
		port := 20000 + rand.IntN(12000) // below the kernel's own range
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	require.Fail(t, "no free port")
	return 0
}

// startEmpty starts a server without the schema.
func startEmpty(t *testing.T, bindir string) *pgserver.Server {
	t.Helper()
	server, err := pgserver.StartBinaries(t.Context(), bindir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
	return server
}

func migrate(t *testing.T, dsn string) {
	t.Helper()
	pool := testkit.Pool(t, dsn)
	require.NoError(t, pgbaton.Migrate(t.Context(), pool))
}

func withDatabase(t *testing.T, dsn, name string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

func nameOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	return filepath.Base(u.Path)
}
