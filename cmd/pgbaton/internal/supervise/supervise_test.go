//go:build unix

package supervise_test

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

func TestMain(m *testing.M) {
	supervise.BecomeKeeper()
	becomeCaller()
	os.Exit(m.Run())
}

// hang ends a wait for what should have happened long ago.
const hang = time.Minute

// callerVariable has this program start the command of its arguments, for tests that kill or freeze the caller.
const callerVariable = "PGBATON_TEST_CALLER"

func becomeCaller() {
	life, err := time.ParseDuration(os.Getenv(callerVariable))
	if err != nil {
		return
	}
	os.Unsetenv(callerVariable)
	p, err := executed(command(life, os.Args[1:]...))
	if err != nil {
		os.Exit(1)
	}
	for {
		select {
		case <-p.Done():
			os.Exit(p.Result().Status)
		case <-time.After(life / 10):
			p.Extend(time.Now().Add(life))
		}
	}
}

func command(life time.Duration, args ...string) supervise.Command {
	path, err := supervise.Find(args[0])
	if err != nil {
		panic(err)
	}
	return supervise.Command{
		Path: path, Args: args, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Life: life,
	}
}

// executed starts a command, and waits until the system has executed it.
func executed(cmd supervise.Command) (*supervise.Process, error) {
	p, err := supervise.Begin(cmd)
	if err != nil {
		return nil, err
	}
	return p, p.Started()
}

// started is a command whose standard output is read by the test.
type started struct {
	*supervise.Process
	output *os.File
	lines  *bufio.Reader
}

func start(t *testing.T, change func(*supervise.Command), args ...string) started {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { r.Close() })
	cmd := command(time.Hour, args...)
	cmd.Stdout = w
	if change != nil {
		change(&cmd)
	}
	p, err := executed(cmd)
	w.Close()
	require.NoError(t, err)
	t.Cleanup(func() {
		p.Kill()
		p.Result()
	})
	return started{p, r, bufio.NewReader(r)}
}

// line reads a line of the command's output.
func (s started) line(t *testing.T) string {
	t.Helper()
	text, err := s.lines.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSuffix(text, "\n")
}

// pids reads the numbers of processes from a line of the command's output.
func (s started) pids(t *testing.T) []int {
	t.Helper()
	return numbers(t, s.line(t))
}

func numbers(t *testing.T, line string) []int {
	t.Helper()
	var pids []int
	for _, field := range strings.Fields(line) {
		pid, err := strconv.Atoi(field)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return pids
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }

// requireGone makes sure that processes are gone now: a zombie that the first process of the system has not buried counts as one.
func requireGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		require.False(t, alive(pid), "process %d is there", pid)
	}
}

// waitGone waits until processes are gone, for tests in which nobody tells them.
func waitGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		require.Eventually(t, func() bool { return !alive(pid) }, hang, time.Millisecond, "process %d is there", pid)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]int{
		"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9, "kill -USR1 $$": 128 + 10,
	} {
		t.Run(script, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", script)
			result := p.Result()
			require.Equal(t, supervise.Result{Status: want}, result)
		})
	}
}

func TestCannotRun(t *testing.T) {
	t.Parallel()
	_, err := supervise.Find("there-is-no-such-program")
	requireStatus(t, err, supervise.StatusNotFound)
	dir := t.TempDir()
	_, err = supervise.Find(dir)
	requireStatus(t, err, supervise.StatusNotExecutable)

	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		require.NoError(t, os.Chmod(file, mode))
		return file
	}
	_, err = supervise.Find(write("plain", "#!/bin/sh\n", 0o600))
	requireStatus(t, err, supervise.StatusNotExecutable)
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"no-interpreter": {"#!/there/is/no/such/program\n", supervise.StatusNotFound},
		"no-program":     {"this is text\n", supervise.StatusNotExecutable},
	} {
		cmd := command(time.Hour, "true")
		cmd.Path = write(name, c.text, 0o700)
		_, err := executed(cmd)
		requireStatus(t, err, c.want)
	}
}

func requireStatus(t *testing.T, err error, want int) {
	t.Helper()
	var cannot *supervise.RunError
	require.ErrorAs(t, err, &cannot)
	require.Equal(t, want, cannot.Status(), "%v", err)
}

func TestHandedOn(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	_, err = w.WriteString("what was typed\n")
	require.NoError(t, err)
	w.Close()
	p := start(t, func(cmd *supervise.Command) {
		cmd.Stdin, cmd.Env = r, append(os.Environ(), "A_VARIABLE=a value; $HOME")
	}, "sh", "-c", `cat; echo "$A_VARIABLE"; echo "$0" "$1"; pwd`, "no $shell", "a  b")
	require.Equal(t, "what was typed", p.line(t))
	require.Equal(t, "a value; $HOME", p.line(t))
	require.Equal(t, "no $shell a  b", p.line(t))
	dir, err := os.Getwd()
	require.NoError(t, err)
	require.Equal(t, dir, p.line(t))
	require.Equal(t, 0, p.Result().Status)
}

func TestSignal_ReachesTheGroup(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			t.Parallel()
			name := strings.TrimPrefix(unix.SignalName(sig), "SIG")
			// Both processes of the group say that they have had it. A shell gives its children in the background no INT
			// and no QUIT, so both are in the foreground.
			p := start(t, nil, "sh", "-c", `trap 'echo outer' `+name+`; sh -c 'trap "echo inner; exit" `+name+
				`; echo ready; while :; do sleep 0.01; done'; exit 7`)
			require.Equal(t, "ready", p.line(t))
			p.Signal(sig)
			require.ElementsMatch(t, []string{"inner", "outer"}, []string{p.line(t), p.line(t)})
			require.Equal(t, supervise.Result{Status: 7}, p.Result())
		})
	}
}

// families are commands that leave processes behind in all ways.
func families() map[string]string {
	return map[string]string{
		"Group":     `sleep 999 & echo $$ $!; wait`,
		"Deaf":      `trap '' TERM HUP INT QUIT; sleep 999 & echo $$ $!; wait`,
		"Session":   `setsid sh -c 'sleep 999 & echo $$ $!; wait' & wait`,
		"Orphans":   `sh -c 'sh -c "sleep 999 & echo \$\$ \$!; wait" &' ; sleep 999`,
		"FarOrphan": `setsid sh -c 'setsid sh -c "sleep 999 & echo \$\$ \$!; wait" & exit' ; sleep 999`,
	}
}

func TestKill_LeavesNobody(t *testing.T) {
	t.Parallel()
	for name, script := range families() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", script)
			pids := p.pids(t)
			p.Kill()
			require.Equal(t, 128+9, p.Result().Status)
			requireGone(t, pids...)
		})
	}
}

func TestEnd_LeavesNobody(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "sh", "-c", `sleep 999 & setsid sleep 999 & echo $!; exit 3`)
	pids := p.pids(t)
	require.Equal(t, supervise.Result{Status: 3}, p.Result())
	requireGone(t, pids...)
}

func TestLife_EndsWithTermAndKill(t *testing.T) {
	t.Parallel()
	graceful := func(cmd *supervise.Command) { cmd.Life, cmd.Grace = 2*hang, hang }
	t.Run("Heeded", func(t *testing.T) {
		t.Parallel()
		p := start(t, graceful, "sh", "-c", `trap 'echo told; exit 4' TERM; echo ready; while :; do sleep 0.01; done`)
		require.Equal(t, "ready", p.line(t))
		p.Extend(time.Now().Add(hang / 2))
		require.Equal(t, "told", p.line(t))
		require.Equal(t, supervise.Result{Status: 4, Expired: true}, p.Result())
	})
	t.Run("Stopped", func(t *testing.T) {
		t.Parallel()
		p := start(t, graceful, "sh", "-c", `trap 'echo told; exit 4' TERM; echo ready; kill -STOP $$; sleep 999`)
		require.Equal(t, "ready", p.line(t))
		p.Extend(time.Now().Add(hang / 2))
		require.Equal(t, supervise.Result{Status: 4, Expired: true}, p.Result())
	})
	for name, script := range families() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, nil, "sh", "-c", "trap '' TERM;"+script)
			pids := p.pids(t)
			p.Extend(time.Now())
			require.Equal(t, supervise.Result{Status: 128 + 9, Expired: true}, p.Result())
			requireGone(t, pids...)
		})
	}
}

// TestLife_GoesOn extends a life that would have been over many times.
func TestLife_GoesOn(t *testing.T) {
	t.Parallel()
	p := start(t, nil, "sleep", "999")
	p.Extend(time.Now().Add(hang))
	for range 10_000 { // more than fits into the pipe
		p.Extend(time.Now().Add(hang))
	}
	p.Signal(unix.SIGTERM)
	require.Equal(t, supervise.Result{Status: 128 + 15}, p.Result())
}

// TestLife_NoWordSavesTheTold: a command that was told to stop is stopped, whatever comes later.
func TestLife_NoWordSavesTheTold(t *testing.T) {
	t.Parallel()
	p := start(t, func(cmd *supervise.Command) { cmd.Grace = hang },
		"sh", "-c", `trap 'echo told' TERM; echo ready; while :; do sleep 0.01; done`)
	require.Equal(t, "ready", p.line(t))
	p.Extend(time.Now().Add(2 * time.Second))
	require.Equal(t, "told", p.line(t))
	p.Extend(time.Now().Add(time.Hour))
	require.Equal(t, supervise.Result{Status: 128 + 9, Expired: true}, p.Result())
}
