package lab

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Replica is a copy of a server's data directory. It lies beside the original, so that nothing is left of it
// whatever becomes of the test.
type Replica struct {
	Of   *pgserver.Server // whose user runs it
	Data string           // its directory
}

// CopyOf copies the data directory as it is.
func CopyOf(tb testing.TB, server *pgserver.Server) *Replica {
	tb.Helper()
	r := &Replica{Of: server, Data: filepath.Join(filepath.Dir(server.DataDir()), "copy")}
	RunAs(tb, server, "cp", "-a", server.DataDir(), r.Data)
	require.NoError(tb, os.RemoveAll(filepath.Join(r.Data, "postmaster.pid")))
	return r
}

// Start starts the copy on a port of its own and returns its URL.
func (r *Replica) Start(tb testing.TB, settings ...string) string {
	tb.Helper()
	port, err := pgserver.FreePort()
	require.NoError(tb, err)
	options := fmt.Sprintf("-p %d", port)
	for _, setting := range settings {
		options += fmt.Sprintf(" -c %s", setting)
	}
	PgCtl(tb, r.Of, r.Data, "start", "-o", options, "-l", r.Data+".log")
	tb.Cleanup(func() {
		// A test's context has ended by now.
		cmd := commandAs(context.Background(), tb, r.Of, "pg_ctl", "stop", "-D", r.Data, "-m", "immediate")
		out, err := cmd.CombinedOutput()
		require.NoError(tb, err, "%s", out)
	})
	u, err := url.Parse(r.Of.URL())
	require.NoError(tb, err)
	u.Host = fmt.Sprintf("127.0.0.1:%d", port)
	return u.String()
}

// PgCtl runs pg_ctl on a data directory as the user of a server, and waits for it.
func PgCtl(tb testing.TB, server *pgserver.Server, data, verb string, args ...string) {
	tb.Helper()
	RunAs(tb, server, "pg_ctl", append([]string{verb, "-w", "-D", data}, args...)...)
}

// RunAs runs a program of a server, or one of the system, as the user of the server.
func RunAs(tb testing.TB, server *pgserver.Server, program string, args ...string) {
	tb.Helper()
	log, err := os.CreateTemp(tb.TempDir(), "") // not a pipe: a server that is started would keep it open
	require.NoError(tb, err)
	defer log.Close()
	cmd := commandAs(tb.Context(), tb, server, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		require.NoError(tb, err, "%v: %s", args, text)
	}
}

// commandAs prepares a program of the server, or one of the system's, to run as the user that owns the data.
func commandAs(ctx context.Context, tb testing.TB, server *pgserver.Server, program string, args ...string) *exec.Cmd {
	tb.Helper()
	if _, err := os.Stat(filepath.Join(server.BinDir(), program)); err == nil {
		program = filepath.Join(server.BinDir(), program)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = filepath.Dir(server.DataDir())
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	info, err := os.Stat(server.DataDir())
	require.NoError(tb, err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	require.True(tb, ok)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	}
	return cmd
}

// StandbyOf makes a streaming standby, by pg_basebackup or, where there is none, by hand. It replicates as the role replica.
func StandbyOf(tb testing.TB, server *pgserver.Server, conn *pgx.Conn) *Replica {
	tb.Helper()
	u, err := url.Parse(server.URL())
	require.NoError(tb, err)
	info := fmt.Sprintf("host=127.0.0.1 port=%s user=replica password=replica", u.Port())
	testkit.Exec(tb, conn, "CREATE ROLE replica LOGIN REPLICATION PASSWORD 'replica'")
	var r *Replica
	if _, err := os.Stat(filepath.Join(server.BinDir(), "pg_basebackup")); err == nil {
		r = &Replica{Of: server, Data: filepath.Join(filepath.Dir(server.DataDir()), "copy")}
		RunAs(tb, server, "pg_basebackup", "-D", r.Data, "-X", "stream", "-c", "fast", "-d", info)
	} else {
		begin, end := "SELECT pg_backup_start('copy', true)::text", "SELECT labelfile FROM pg_backup_stop(false)"
		if server.Major() < 15 {
			begin, end = "SELECT pg_start_backup('copy', true, false)::text", "SELECT labelfile FROM pg_stop_backup(false, false)"
		}
		testkit.Value[string](tb, conn, begin)
		r = CopyOf(tb, server)
		r.write(tb, "backup_label", testkit.Value[string](tb, conn, end))
	}
	r.write(tb, "standby.signal", "")
	r.write(tb, "postgresql.auto.conf", "primary_conninfo = '"+info+"'\n")
	return r
}

func (r *Replica) write(tb testing.TB, name, content string) {
	tb.Helper()
	path := filepath.Join(r.Data, name)
	require.NoError(tb, os.WriteFile(path, []byte(content), 0o600))
	info, err := os.Stat(r.Data)
	require.NoError(tb, err)
	owner, ok := info.Sys().(*syscall.Stat_t)
	require.True(tb, ok)
	require.NoError(tb, os.Chown(path, int(owner.Uid), int(owner.Gid)))
}
