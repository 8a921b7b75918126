package pgserver

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// localBinDirs is [BinDirs] for tests, which are skipped on a machine that has only Docker.
func localBinDirs(t *testing.T) []string {
	t.Helper()
	dirs := BinDirs()
	if len(dirs) == 0 {
		t.Skip("no local PostgreSQL programs: apt-get install postgresql")
	}
	return dirs
}

// startBinaries starts a server from the newest programs of this machine.
func startBinaries(t *testing.T, opts ...Option) *Server {
	t.Helper()
	s, err := StartBinaries(t.Context(), localBinDirs(t)[0], opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop(context.Background())) })
	return s
}

func query[T any](t *testing.T, url, sql string) T {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer closeConn(t.Context(), conn)
	rows, err := conn.Query(t.Context(), sql)
	require.NoError(t, err)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err)
	return value
}

func execute(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer closeConn(t.Context(), conn)
	_, err = conn.Exec(t.Context(), sql)
	require.NoError(t, err)
}

func gone(pid int, dir string) bool {
	_, err := os.Stat(dir)
	return os.IsNotExist(err) && !running(pid)
}

// running looks past zombies, which stay when a container's first process does not collect orphans.
func running(pid int) bool {
	if !alive(pid) {
		return false
	}
	_, err := os.Readlink(filepath.Join("/proc", itoa(pid), "exe"))
	_, noProc := os.Stat("/proc/self")
	return err == nil || noProc != nil
}

func TestStartBinaries_Settings(t *testing.T) {
	t.Parallel()
	s := startBinaries(t, WithSetting("log_lock_waits", "on"), WithSetting("max_connections", "17"),
		WithSetting("application_name", `it's a "back\slash"`))

	require.Equal(t, "on", query[string](t, s.URL(), "SHOW log_lock_waits"))
	require.Equal(t, "17", query[string](t, s.URL(), "SHOW max_connections"))
	require.Equal(t, "on", query[string](t, s.URL(), "SHOW fsync"), "a server for fault tests is durable")
	require.Equal(t, `it's a "back\slash"`, query[string](t, s.URL(), "SHOW application_name"))
	require.Equal(t, s.DataDir(), query[string](t, s.URL(), "SHOW data_directory"))
	require.Equal(t, binaryMajor(s.BinDir()), s.Major())
	require.FileExists(t, s.LogFile())
	require.Positive(t, s.PID())
	require.Equal(t, "binaries in "+s.BinDir(), s.Origin())
}

func TestStartBinaries_Restart(t *testing.T) {
	t.Parallel()
	s := startBinaries(t)
	execute(t, s.URL(), "CREATE TABLE kept (); CREATE UNLOGGED TABLE crashed AS SELECT 1 AS n")
	first := s.PID()

	require.NoError(t, s.Restart(t.Context(), "fast"))
	require.NotEqual(t, first, s.PID())
	require.Equal(t, int64(1), query[int64](t, s.URL(), "SELECT count(*) FROM crashed"))

	require.NoError(t, s.Restart(t.Context(), "immediate"))
	require.Equal(t, int64(0), query[int64](t, s.URL(), "SELECT count(*) FROM crashed"), "recovery empties unlogged tables")
	require.Equal(t, int64(0), query[int64](t, s.URL(), "SELECT count(*) FROM kept"))

	killed := s.PID()
	require.NoError(t, syscall.Kill(killed, syscall.SIGKILL))
	require.NoError(t, s.Restart(t.Context(), "fast"), "a killed server starts again")
	require.NotEqual(t, killed, s.PID())
}

func TestStartBinaries_StopRemovesEverything(t *testing.T) {
	t.Parallel()
	s := startBinaries(t)
	pid, dir := s.PID(), s.cluster.dir
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP), "a frozen server must stop too")
	require.NoError(t, s.Stop(t.Context()))
	require.True(t, gone(pid, dir))
	require.NoError(t, s.Stop(t.Context()), "twice is safe")
	require.Zero(t, s.PID())
}

func TestStartBinaries_TellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := StartBinaries(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "has no initdb")

	dirs := localBinDirs(t)
	_, err = StartBinaries(t.Context(), dirs[0], WithSetting("no_such_setting", "1"))
	require.ErrorContains(t, err, `unrecognized configuration parameter "no_such_setting"`)
}

// A program that is killed since the context has ended does not know why, and the error says it.
func TestCluster_RunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c := &cluster{bindir: "/bin", dir: t.TempDir()}
	err := c.run(ctx, "sleep", "60")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "sleep")
}

// A start whose context ends, at whichever step, says so, and leaves nothing.
func TestStartBinaries_EndsWithItsContext(t *testing.T) {
	parent := t.TempDir()
	for _, dir := range []string{parent, filepath.Dir(parent)} { // both are the test's own
		require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // the server may run as another user
	}
	t.Setenv("TMPDIR", parent)
	dirs := localBinDirs(t)
	for _, limit := range []time.Duration{1, 100, 200, 400, 800, 1600, 60_000} {
		ctx, cancel := context.WithTimeout(t.Context(), limit*time.Millisecond)
		begin := time.Now()
		s, err := StartBinaries(ctx, dirs[0])
		require.Less(t, time.Since(begin), limit*time.Millisecond+time.Minute)
		if err == nil {
			require.Equal(t, parent, filepath.Dir(s.cluster.dir))
			require.NoError(t, s.Stop(t.Context()))
		} else {
			require.ErrorIs(t, err, context.DeadlineExceeded, "after %d ms", limit)
		}
		cancel()
	}
	require.Eventually(t, func() bool {
		left, err := os.ReadDir(parent)
		return err == nil && len(left) == 0
	}, time.Minute, 10*time.Millisecond, "a server's directory is left")
}
