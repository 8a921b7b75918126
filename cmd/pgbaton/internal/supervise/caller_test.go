//go:build unix

package supervise_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

// caller starts a process that starts a command, and returns the process and the numbers of a line of the command's.
func caller(t *testing.T, life time.Duration, script string) (*exec.Cmd, []int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "sh", "-c", script)
	cmd.Env = append(os.Environ(), callerVariable+"="+life.String())
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
		_, _ = cmd.Process.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = io.Copy(io.Discard, out) })
	return cmd, numbers(t, strings.TrimSpace(line))
}

func TestCaller_Killed(t *testing.T) {
	t.Parallel()
	for name, script := range families() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, pids := caller(t, time.Hour, script)
			require.NoError(t, unix.Kill(-cmd.Process.Pid, unix.SIGKILL)) // its whole group
			waitGone(t, pids...)
		})
	}
}

func TestCaller_Frozen(t *testing.T) {
	t.Parallel()
	for name, script := range families() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, pids := caller(t, 3*time.Second, script)
			require.NoError(t, cmd.Process.Signal(unix.SIGSTOP))
			waitGone(t, pids...)
			require.NoError(t, cmd.Process.Signal(unix.SIGCONT))
			require.Error(t, cmd.Wait())
			require.Equal(t, 128+9, cmd.ProcessState.ExitCode(), "it hears of it when it goes on")
		})
	}
}

// keeperOf returns the keeper of a caller.
func keeperOf(t *testing.T, caller int) int {
	t.Helper()
	out, err := exec.Command("ps", "-o", "pid=", "--ppid", strconv.Itoa(caller)).Output()
	require.NoError(t, err)
	keeper, err := strconv.Atoi(strings.TrimSpace(string(out)))
	require.NoError(t, err)
	return keeper
}

// TestIgnoredStaysIgnored is what nohup is for.
func TestIgnoredStaysIgnored(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `trap '' HUP; exec "$0" sh -c 'kill -HUP $$; kill -TERM $$'`, os.Args[0])
	cmd.Env = append(os.Environ(), callerVariable+"=1h")
	require.Error(t, cmd.Run())
	require.Equal(t, 128+15, cmd.ProcessState.ExitCode(), "HUP was ignored, TERM was not")
}

// TestFilesOfTheCaller are open in the command under the numbers that they had.
func TestFilesOfTheCaller(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec 3>&1 5>&1; exec "$0" sh -c 'echo three >&3; echo five >&5'`, os.Args[0])
	cmd.Env = append(os.Environ(), callerVariable+"=1h")
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "three\nfive\n", string(out))
}

func TestStart_ManyAtATime(t *testing.T) {
	t.Parallel()
	processes := make([]*supervise.Process, 20)
	for i := range processes {
		p, err := executed(command(time.Hour, "sh", "-c", "exit "+strconv.Itoa(i)))
		require.NoError(t, err)
		processes[i] = p
	}
	for i, p := range processes {
		require.Equal(t, supervise.Result{Status: i}, p.Result())
	}
}
