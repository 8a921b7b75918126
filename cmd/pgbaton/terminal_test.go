//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// screen is a terminal with a program in it, and what it shows.
type screen struct {
	keyboard *os.File
	cmd      *exec.Cmd

	mu    sync.Mutex
	shown bytes.Buffer
}

// onTerminal starts a program on a terminal of its own, as a login shell is.
func onTerminal(t *testing.T, dsn string, args ...string) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer tty.Close()
	s := &screen{keyboard: master, cmd: exec.Command(args[0], args[1:]...)}
	s.cmd.Env = append(os.Environ(), "DATABASE_URL="+patient(t, dsn), "PS1=$ ")
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, s.cmd.Start())
	go func() {
		_, _ = io.Copy(s, master)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_, _ = s.cmd.Process.Wait()
		master.Close()
	})
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

// shows waits until the screen has shown a text.
func (s *screen) shows(t *testing.T, text string) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("the terminal shows %q", text), func() bool { return strings.Contains(s.text(), text) })
}

func (s *screen) types(t *testing.T, text string) {
	t.Helper()
	_, err := s.keyboard.WriteString(text)
	require.NoError(t, err)
}

// TestTerminal_Foreground: the command reads from the terminal, and Ctrl-C is for it.
func TestTerminal_Foreground(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, testkit.Migrated(t), program, longTTL, "run", "k", "--", "sh", "-c",
		`trap 'echo interrupted; exit 9' INT; echo ready; read line < /dev/tty; echo "read $line"; while :; do sleep 0.01; done`)
	s.shows(t, "ready")
	s.types(t, "a line\n")
	s.shows(t, "read a line")
	s.types(t, "\x03")
	s.shows(t, "interrupted")
	require.Error(t, s.cmd.Wait())
	require.Equal(t, 9, s.cmd.ProcessState.ExitCode())
}

// TestTerminal_Shell: in a shell with job control Ctrl-Z gives the shell back, fg goes on, and after the end the shell has
// the terminal.
func TestTerminal_Shell(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, testkit.Migrated(t), "bash", "--norc", "--noprofile", "-i")
	s.types(t, program+` run k --ttl 1h -- sh -c 'echo rea""dy; read line; echo "read $line"'`+"\n")
	s.shows(t, "ready")
	s.types(t, "\x1a")
	s.shows(t, "Stopped")
	s.types(t, "echo the sh''ell\n")
	s.shows(t, "the shell\r\n")
	s.types(t, "fg\n")
	s.types(t, "a line\n")
	s.shows(t, "read a line")
	s.types(t, "echo the e''nd; exit\n")
	s.shows(t, "the end\r\n")
	require.NoError(t, s.cmd.Wait())
}

// TestTerminal_Background: a command that was stopped and goes on in the background leaves the terminal to the shell when it ends.
func TestTerminal_Background(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	s := onTerminal(t, dsn, "bash", "--norc", "--noprofile", "-i")
	end := filepath.Join(t.TempDir(), "end")
	require.NoError(t, unix.Mkfifo(end, 0o600))
	s.types(t, program+` run k --ttl 1h -- sh -c 'echo rea""dy; read line < `+end+"'\n")
	s.shows(t, "ready")
	s.types(t, "\x1a")
	s.shows(t, "Stopped")
	s.types(t, "bg; echo in the back''ground\n")
	s.shows(t, "in the background")
	require.NoError(t, os.WriteFile(end, []byte("\n"), 0o600))
	lock, err := client(t, dsn).Acquire(t.Context(), pgbaton.Name("k")) // when nothing of the command is left
	require.NoError(t, err)
	require.NoError(t, lock.Release(t.Context()))
	s.types(t, "echo the sh''ell; exit 0\n")
	s.shows(t, "the shell\r\n")
	require.NoError(t, s.cmd.Wait())
}

// TestTerminal_Pipeline: the terminal is left to a pager behind the command, and lent to a command that reads from it none the less.
func TestTerminal_Pipeline(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	const pager = ` | sh -c 'read word; echo "$word"; read line < /dev/tty; echo "read $line"'`
	s := onTerminal(t, dsn, "sh", "-c", program+` run k --ttl 1h -- sh -c 'echo ready; exec sleep 999'`+pager)
	s.shows(t, "ready")
	s.types(t, "a line\n")
	s.shows(t, "read a line")
	s.types(t, "\x03")
	require.Error(t, s.cmd.Wait())

	s = onTerminal(t, dsn, "sh", "-c", program+` run l --ttl 1h -- sh -c 'echo ready; read line < /dev/tty; echo "read $line"' | cat`)
	s.shows(t, "ready")
	s.types(t, "a line\n")
	s.shows(t, "read a line")
	require.NoError(t, s.cmd.Wait())
}

// TestTerminal_NoShell: where nobody could have the command go on, Ctrl-Z does not stop it.
func TestTerminal_NoShell(t *testing.T) {
	t.Parallel()
	s := onTerminal(t, testkit.Migrated(t), program, longTTL, "run", "k", "--", "sh", "-c",
		`trap 'echo went on' CONT; echo ready; read line; echo "read $line"; read line; echo "read $line"`)
	s.shows(t, "ready")
	s.types(t, "\x1a")
	s.shows(t, "went on")
	s.types(t, "a line\nanother line\n")
	s.shows(t, "line")
	require.NoError(t, s.cmd.Wait())
}

// TestTerminal_CannotRun: the terminal is the caller's again when there was no command.
func TestTerminal_CannotRun(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.WriteFile(broken, []byte("this is text\n"), 0o700)) //nolint:gosec // it is to be executable
	s := onTerminal(t, testkit.Migrated(t), "sh", "-c", program+` run k --ttl 1h -- "$0"; echo "status $?"; read line; echo "read $line"`, broken)
	s.shows(t, "status 126")
	s.types(t, "a line\n")
	s.shows(t, "read a line")
	require.NoError(t, s.cmd.Wait())
}
