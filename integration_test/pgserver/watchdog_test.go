package pgserver

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func itoa(n int) string { return strconv.Itoa(n) }

// helper runs the test binary in one of the parts that TestMain knows.
func helper(t *testing.T, part string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, envHelper+"="+part, "DATABASE_URL=")...)
	cmd.Stderr = os.Stderr
	return cmd
}

// startHelper starts the part "binaries" and waits until its server runs.
func startHelper(t *testing.T, cmd *exec.Cmd) (stdin io.Closer, pid int, dir string) {
	t.Helper()
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	var url string
	_, err = fmt.Sscan(line, &pid, &dir, &url)
	require.NoError(t, err, line)
	require.True(t, running(pid))
	require.NotEmpty(t, query[string](t, url, "SHOW server_version"))
	return in, pid, filepath.Dir(dir)
}

func TestWatchdog_EndsTheServerOfAKilledProcess(t *testing.T) {
	t.Parallel()
	dirs := localBinDirs(t)
	cmd := helper(t, "binaries", "PGSERVER_TEST_BINDIR="+dirs[0])
	_, pid, dir := startHelper(t, cmd)

	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool { return gone(pid, dir) }, time.Minute, 20*time.Millisecond)
}

func TestWatchdog_CleansUpAfterAStartThatWasKilled(t *testing.T) {
	t.Parallel()
	dirs := localBinDirs(t)
	for _, age := range []time.Duration{50 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond, 900 * time.Millisecond} {
		t.Run(age.String(), func(t *testing.T) {
			t.Parallel()
			tmp, err := os.MkdirTemp("/tmp", "pgserver-test-") //nolint:usetesting // t.TempDir is closed to other users
			require.NoError(t, err)
			require.NoError(t, os.Chmod(tmp, 0o777|os.ModeSticky))
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(tmp)) })
			cmd := helper(t, "binaries", "PGSERVER_TEST_BINDIR="+dirs[0], "TMPDIR="+tmp)
			require.NoError(t, cmd.Start())
			time.Sleep(age) // any moment is a good one
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()

			require.Eventually(t, func() bool {
				left, err := os.ReadDir(tmp)
				return err == nil && len(left) == 0 && !dataDirInUse(tmp)
			}, time.Minute, 50*time.Millisecond)
		})
	}
}

// dataDirInUse says whether some process works in a directory below dir.
func dataDirInUse(dir string) bool {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && len(target) > len(dir) && target[:len(dir)] == dir {
			return true
		}
	}
	return false
}

func TestStartBinaries_AsOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("not root: the other tests are run by an ordinary user already")
	}
	dirs := localBinDirs(t)
	nobody := lookup(t, "nobody")
	// The test binary stands in a directory that is root's own.
	dir, err := makeDir(nobody)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	program, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	// A child that is forked by another test while the file is open for writing would keep it busy for a moment.
	syscall.ForkLock.RLock()
	err = os.WriteFile(filepath.Join(dir, "pgserver.test"), program, 0o755)
	syscall.ForkLock.RUnlock()
	require.NoError(t, err)

	cmd := helper(t, "binaries", "PGSERVER_TEST_BINDIR="+dirs[0], "HOME="+dir)
	cmd.Path = filepath.Join(dir, "pgserver.test")
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(nobody.uid), Gid: uint32(nobody.gid)}}
	stdin, pid, serverDir := startHelper(t, cmd)

	info, err := os.Stat(serverDir)
	require.NoError(t, err)
	require.EqualValues(t, nobody.uid, info.Sys().(*syscall.Stat_t).Uid)
	require.NoError(t, stdin.Close(), "which tells it to stop")
	require.NoError(t, cmd.Wait())
	require.True(t, gone(pid, serverDir))
}

func lookup(t *testing.T, name string) *account {
	t.Helper()
	u, err := user.Lookup(name)
	require.NoError(t, err)
	uid, err := strconv.Atoi(u.Uid)
	require.NoError(t, err)
	gid, err := strconv.Atoi(u.Gid)
	require.NoError(t, err)
	return &account{uid: uid, gid: gid}
}
