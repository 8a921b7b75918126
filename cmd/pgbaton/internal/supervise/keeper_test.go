//go:build unix

package supervise_test

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

// result waits for the end of a command, and not for ever.
func (s started) result(t *testing.T) supervise.Result {
	t.Helper()
	select {
	case <-s.Done():
		return s.Result()
	case <-time.After(hang):
		require.Fail(t, "the command does not end")
		return supervise.Result{}
	}
}

// waitState waits until a process is in one of the states that ps says, T for stopped.
func waitState(t *testing.T, pid int, states string) {
	t.Helper()
	require.Eventually(t, func() bool {
		out, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
		return err == nil && strings.ContainsAny(string(out[:1]), states)
	}, hang, 10*time.Millisecond, "process %d is in none of the states %s", pid, states)
}

// stopKeeper stops the keeper of a command, and has it go on at the end of the test: nobody else kills what it keeps.
func stopKeeper(t *testing.T, keeper int) {
	t.Helper()
	require.NoError(t, unix.Kill(keeper, unix.SIGSTOP))
	t.Cleanup(func() { _ = unix.Kill(keeper, unix.SIGCONT) })
	waitState(t, keeper, "T")
}

// TestLife_NoLateWordSavesIt freezes keepers while the life ends and a word comes that extends it: what is over stays over when all go on,
// whichever of both the keeper sees first.
func TestLife_NoLateWordSavesIt(t *testing.T) {
	t.Parallel()
	for round := range 10 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			t.Parallel()
			const soon = 2 * time.Second
			p := start(t, nil, "sh", "-c", `trap 'echo heard' USR1; echo $PPID; while :; do sleep 0.01; done`)
			keeper := p.pids(t)[0]
			until := time.Now().Add(soon)
			p.Extend(until)
			p.Signal(unix.SIGUSR1)
			if line, err := p.lines.ReadString('\n'); err == nil { // else the machine was slow, and the life is over as it is
				require.Equal(t, "heard\n", line, "orders are taken in their order")
			}
			_ = unix.Kill(keeper, unix.SIGSTOP)
			time.Sleep(time.Until(until) + 10*time.Millisecond) // the life ends by the clock
			p.Extend(time.Now().Add(time.Hour))
			_ = unix.Kill(keeper, unix.SIGCONT)
			require.Equal(t, supervise.Result{Status: 128 + 9, Expired: true}, p.result(t))
		})
	}
}

// TestEnd_CatchesRunaways: processes that fork and end so fast that no look at the list of processes finds them are waited for.
func TestEnd_CatchesRunaways(t *testing.T) {
	t.Parallel()
	const script = `run() { if [ "$1" -gt 0 ]; then run $(($1 - 1)) & fi; }; run 300`
	for round := range 5 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", `for i in 1 2 3; do setsid sh -c "$0" & done; sleep 0.05; exit 3`, script)
			require.Equal(t, supervise.Result{Status: 3}, p.result(t))
			requireUnwritten(t, p)
		})
	}
}

// requireUnwritten makes sure that no process has the standard output of a command.
func requireUnwritten(t *testing.T, p started) {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(p.output.Fd())}} //nolint:gosec // a file's number
	_, err := unix.Poll(poll, 0)
	require.NoError(t, err)
	require.NotZero(t, poll[0].Revents&unix.POLLHUP, "a process of the command is there")
}

// TestSignal_WakesTheStopped: a command that is stopped has a signal to stop as any other one has it.
func TestSignal_WakesTheStopped(t *testing.T) {
	t.Parallel()
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", `echo $$; kill -STOP $$; sleep 999`)
			waitState(t, p.pids(t)[0], "T")
			p.Signal(sig)
			require.Equal(t, supervise.Result{Status: 128 + int(sig)}, p.result(t))
		})
	}
}

// TestKeeper_Stopped: a keeper that somebody has stopped saves nobody.
func TestKeeper_Stopped(t *testing.T) {
	t.Parallel()
	for name, script := range families() {
		t.Run("Kill/"+name, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", "echo $PPID;"+script)
			keeper, pids := p.pids(t)[0], p.pids(t)
			stopKeeper(t, keeper)
			p.Kill()
			require.Equal(t, 128+9, p.result(t).Status)
			requireGone(t, pids...)
		})
		t.Run("Life/"+name, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", "echo $PPID;"+script)
			keeper, pids := p.pids(t)[0], p.pids(t)
			stopKeeper(t, keeper)
			p.Extend(time.Now().Add(10 * time.Millisecond))
			require.Equal(t, supervise.Result{Status: 128 + 9, Expired: true}, p.result(t))
			requireGone(t, pids...)
		})
	}
}

func TestKeeper_Killed(t *testing.T) {
	t.Parallel()
	for name, script := range families() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, pids := caller(t, time.Hour, script)
			require.NoError(t, unix.Kill(keeperOf(t, cmd.Process.Pid), unix.SIGKILL))
			require.Error(t, cmd.Wait())
			require.Equal(t, 128+9, cmd.ProcessState.ExitCode())
			requireGone(t, pids...)
		})
	}
}

// TestKeeper_SurvivesSignals sends the keeper what it withstands, and then the command what ends it: the keeper says with what status.
func TestKeeper_SurvivesSignals(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "sh", "-c", `trap 'exit 9' USR2; echo $PPID; while :; do sleep 0.01; done`)
	keeper := p.pids(t)[0]
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2} {
		require.NoError(t, unix.Kill(keeper, sig))
	}
	p.Signal(unix.SIGUSR2)
	require.Equal(t, supervise.Result{Status: 9}, p.result(t))
}
