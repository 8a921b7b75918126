//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// baton is a call of the command that runs.
type baton struct {
	*exec.Cmd

	output *os.File
	lines  *bufio.Reader // of output
	stderr *bytes.Buffer
}

// call starts the command on a database. It is killed at the end of the test if it runs then. On a busy machine it is lost for silence only
// where a test says a TTL.
func call(t *testing.T, dsn string, args ...string) *baton {
	t.Helper()
	b := &baton{Cmd: exec.Command(program, args...), stderr: new(bytes.Buffer)}
	b.Env = append(os.Environ(), "DATABASE_URL="+patient(t, dsn))
	if !slices.Contains(args, shortTTL) {
		b.Args = slices.Insert(b.Args, 1, longTTL)
	}
	b.Stderr = b.stderr
	r, w, err := os.Pipe()
	require.NoError(t, err)
	b.Stdout, b.output, b.lines = w, r, bufio.NewReader(r)
	require.NoError(t, b.Start())
	w.Close()
	t.Cleanup(func() {
		_ = b.Process.Kill()
		_, _ = b.Process.Wait()
		r.Close()
	})
	return b
}

// patient is dsn with a time to connect that fits a busy machine.
func patient(t *testing.T, dsn string) string {
	t.Helper()
	return testkit.With(t, dsn, "connect_timeout", "60")
}

// hasEnded reports whether nobody has standard output: the call has ended, and its command too.
func (b *baton) hasEnded(t *testing.T) bool {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(b.output.Fd())}} //nolint:gosec // a file's number
	_, err := unix.Poll(poll, 0)
	require.NoError(t, err)
	return poll[0].Revents&unix.POLLHUP != 0
}

// line reads a line of standard output.
func (b *baton) line(t *testing.T) string {
	t.Helper()
	text, err := b.lines.ReadString('\n')
	require.NoError(t, err, "standard error: %s", b.stderr)
	return strings.TrimSuffix(text, "\n")
}

// pids reads a line of numbers of processes.
func (b *baton) pids(t *testing.T) []int {
	t.Helper()
	return numbers(t, b.line(t))
}

func numbers(t *testing.T, text string) []int {
	t.Helper()
	var pids []int
	for _, field := range strings.Fields(text) {
		pid, err := strconv.Atoi(field)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// requireStatus waits for the end of the call, and returns the rest of standard output.
func (b *baton) requireStatus(t *testing.T, want int) string {
	t.Helper()
	rest, err := io.ReadAll(b.lines)
	require.NoError(t, err)
	err = b.Wait()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
	}
	require.Equal(t, want, b.ProcessState.ExitCode(), "%v: %s", err, b.stderr)
	return string(rest)
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func requireGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		require.False(t, alive(pid), "process %d is there", pid)
	}
}

func waitGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		testkit.Eventually(t, "process "+strconv.Itoa(pid)+" is gone", func() bool { return !alive(pid) })
	}
}

// client opens a client of the library.
func client(t *testing.T, dsn string) *pgbaton.Client {
	t.Helper()
	c, err := pgbaton.Open(testkit.Context(t), dsn, &pgbaton.Config{TTL: time.Hour})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close(context.Background())) })
	return c
}

// witness is a command that reports whether processes live, once it is its turn.
func witness(pids []int) []string {
	script := ""
	for _, pid := range pids {
		script += "kill -0 " + strconv.Itoa(pid) + " 2>/dev/null && echo alive; "
	}
	return []string{"sh", "-c", script + "echo seen"}
}

const (
	longTTL  = "--ttl=1h"
	shortTTL = "--ttl=5s"
)

// holdShortly runs a family under a lock that silence costs soon. On a busy machine that may have happened before it begins: then it tries
// again.
func holdShortly(t *testing.T, dsn, key, script string) (*baton, []int) {
	t.Helper()
	for range 20 {
		b := call(t, dsn, "run", key, shortTTL, "--", "sh", "-c", script)
		if line, err := b.lines.ReadString('\n'); err == nil {
			return b, numbers(t, line)
		}
		require.Error(t, b.Wait())
	}
	require.Fail(t, "no lock lasts for long enough")
	return nil, nil
}

// families print the numbers of their processes, and leave some behind in all ways.
var families = map[string]string{
	"Group":   `sleep 999 & echo $$ $!; wait`,
	"Deaf":    `trap '' TERM HUP INT QUIT; sleep 999 & echo $$ $!; while :; do wait; sleep 1; done`,
	"Session": `setsid sh -c 'sleep 999 & echo $$ $!; wait' & wait`,
}
