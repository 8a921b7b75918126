//go:build unix

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// sqlWaits reports whether somebody waits for a lock.
const sqlWaits = `SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`

func TestRun_HandsOn(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	b := &baton{Cmd: exec.Command(program, longTTL, "run", "a key", "--name", "me", "--", "sh", "-c",
		`cat; echo "$PGBATON_KEY, $PGBATON_NAME"; echo "$PGBATON_TOKEN"; exit 7`), stderr: new(bytes.Buffer)}
	b.Env = append(os.Environ(), "DATABASE_URL="+patient(t, dsn), "PGBATON_KEY=inherited", "PGBATON_TOKEN=inherited", "PGBATON_NAME=inherited")
	b.Stdin, b.Stderr = strings.NewReader("typed\n"), b.stderr
	out, err := b.Output()
	require.Equal(t, 7, b.ProcessState.ExitCode(), "%v: %s", err, b.stderr)
	lines := strings.Split(string(out), "\n")
	require.Equal(t, []string{"typed", "a key, me"}, lines[:2])
	token, err := strconv.ParseInt(lines[2], 10, 64)
	require.NoError(t, err)
	require.Positive(t, token)
	require.Empty(t, b.stderr.String())
}

// TestRun_Database: the database comes as psql takes it as well.
func TestRun_Database(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	call(t, "postgres://nobody@127.0.0.1:1/d", "run", "k", "--database-url", patient(t, dsn), "--", "true").requireStatus(t, 0)

	config := testkit.Connect(t, dsn).Config()
	passwords := filepath.Join(t.TempDir(), "pgpass")
	require.NoError(t, os.WriteFile(passwords, []byte("*:*:*:*:"+config.Password+"\n"), 0o600))
	b := exec.Command(program, longTTL, "run", "k", "--", "true")
	b.Env = append(os.Environ(), "DATABASE_URL=", "PGHOST="+config.Host, "PGPORT="+strconv.Itoa(int(config.Port)), "PGUSER="+config.User,
		"PGDATABASE="+config.Database, "PGPASSFILE="+passwords, "PGCONNECT_TIMEOUT=60")
	out, err := b.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// TestRun_StoppedBeforeItHolds stops calls later and later, until one that looks for its command has the signal: none runs its command, which is
// found behind a long PATH.
func TestRun_StoppedBeforeItHolds(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	holder := client(t, dsn)
	path := "PATH=" + strings.Repeat("/x:", 40_000) + os.Getenv("PATH")
	for delay, early := time.Duration(0), true; early; delay += 2 * time.Millisecond {
		lock, err := holder.Acquire(t.Context(), pgbaton.Name("k"))
		require.NoError(t, err)
		b := &baton{Cmd: exec.Command(program, longTTL, "run", "k", "--", "echo", "it ran"), stderr: new(bytes.Buffer)}
		b.Env = append(os.Environ(), "DATABASE_URL="+patient(t, dsn), path)
		var out bytes.Buffer
		b.Stdout, b.Stderr = &out, b.stderr
		require.NoError(t, b.Start())
		time.Sleep(delay)
		require.NoError(t, b.Process.Signal(syscall.SIGTERM))
		require.NoError(t, lock.Release(t.Context()))
		require.Error(t, b.Wait(), "%s", b.stderr)
		require.Empty(t, out.String())
		early = b.ProcessState.Sys().(syscall.WaitStatus).Signaled() // the process did not take signals yet
		if !early {
			require.Equal(t, 128+15, b.ProcessState.ExitCode(), "%s", b.stderr)
		}
	}
}

func TestRun_NotAcquired(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	lock, err := client(t, dsn).Acquire(t.Context(), pgbaton.Name("k"))
	require.NoError(t, err)
	for _, c := range []struct {
		flags  []string
		status int
	}{
		{[]string{"--try"}, 75},
		{[]string{"--try", "--shared"}, 75},
		{[]string{"--wait", "10ms"}, 75},
		{[]string{"--try", "-E", "0"}, 0},
		{[]string{"--wait", "10ms", "-E", "9"}, 9},
	} {
		b := call(t, dsn, append(append([]string{"run", "k"}, c.flags...), "--", "echo", "it ran")...)
		require.Empty(t, b.requireStatus(t, c.status))
		require.Contains(t, b.stderr.String(), `lock "k"`)
	}
	b := call(t, dsn, "run", "k", "--", "echo", "it ran")
	testkit.WaitFor(t, testkit.Connect(t, dsn), sqlWaits)
	require.NoError(t, lock.Release(t.Context()))
	require.Equal(t, "it ran\n", b.requireStatus(t, 0))
}

// TestRun_Kinds runs commands side by side that may be, and tries for one that may not.
func TestRun_Kinds(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for name, c := range map[string]struct {
		flags   []string
		most    int
		another []string
	}{
		"Shared":    {[]string{"--shared"}, 2, nil},
		"Semaphore": {[]string{"--semaphore", "2"}, 2, []string{"--semaphore", "2"}},
		"Permits":   {[]string{"--semaphore", "3", "--permits", "2"}, 1, []string{"--semaphore", "3", "--permits", "2"}},
		"ID":        {nil, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := name
			if name == "ID" {
				key = "id:42"
			}
			run := func(flags []string, command ...string) *baton {
				return call(t, dsn, append(append(append([]string{"run", key}, flags...), "--"), command...)...)
			}
			running := make([]*baton, c.most)
			for i := range running {
				running[i] = run(c.flags, "sh", "-c", "echo ready; exec sleep 999")
				require.Equal(t, "ready", running[i].line(t))
			}
			run(append([]string{"--try"}, c.another...), "true").requireStatus(t, 75)
			for _, b := range running {
				require.NoError(t, b.Process.Signal(syscall.SIGTERM))
				b.requireStatus(t, 128+15)
			}
			run(append([]string{"--wait", "1m"}, c.another...), "true").requireStatus(t, 0)
		})
	}
	t.Run("Mismatch", func(t *testing.T) {
		t.Parallel()
		call(t, dsn, "semaphore", "create", "s", "2").requireStatus(t, 0)
		b := call(t, dsn, "run", "s", "--semaphore", "3", "--", "true")
		b.requireStatus(t, 125)
		require.Contains(t, b.stderr.String(), "pgbaton semaphore resize")
	})
}

func TestRun_AtLeast(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	b := call(t, dsn, "run", "k", "--at-least", "1h", "--", "sh", "-c", "echo $$; exit 3")
	waitGone(t, b.pids(t)...)
	_, err := client(t, dsn).TryAcquire(t.Context(), pgbaton.Name("k"))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, b.Process.Signal(syscall.SIGTERM))
	b.requireStatus(t, 3)
}

func TestRun_Once(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	require.Equal(t, "ran\n", call(t, dsn, "run", "job", "--once", "1h", "--", "echo", "ran").requireStatus(t, 0))
	again := call(t, dsn, "run", "job", "--once", "1h", "--wait", "1m", "--", "echo", "ran")
	require.Empty(t, again.requireStatus(t, 0))
	require.Contains(t, again.stderr.String(), `"job" is not due: its last run began at `)
	require.Equal(t, 1, strings.Count(again.stderr.String(), "\n"))

	call(t, dsn, "run", "fails", "--once", "1h", "--try", "--", "sh", "-c", "exit 6").requireStatus(t, 6)
	last, err := client(t, dsn).LastRun(t.Context(), "fails")
	require.NoError(t, err)
	require.True(t, last.Failed)
	require.Equal(t, "exit status 6", last.Error)
	call(t, dsn, "run", "missing", "--once", "1h", "--", "/there/is/no/such/program").requireStatus(t, 127)
}

func TestRun_Lost(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for name, script := range families {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := call(t, dsn, "run", name, "--name", name, "--", "sh", "-c", script)
			pids := b.pids(t)
			testkit.Exec(t, testkit.Connect(t, dsn), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'pgbaton/' || $1`, name)
			b.requireStatus(t, 76)
			requireGone(t, pids...)
			require.Contains(t, b.stderr.String(), "lost")
		})
	}
}

// TestRun_Signals ends a holder in all ways. The groups are empty when it is gone, or soon after it was killed.
func TestRun_Signals(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGKILL} {
		for name, script := range families {
			t.Run(name+"/"+sig.String(), func(t *testing.T) {
				t.Parallel()
				// A shell without job control has its children ignore INT and QUIT.
				b := call(t, dsn, "run", name+"/"+sig.String(), "--kill-after", "100ms", "--", "sh", "-c", script)
				pids := b.pids(t)
				require.NoError(t, b.Process.Signal(sig))
				if name == "Deaf" && sig == syscall.SIGHUP { // it is deaf to it, and HUP need not be a signal to stop
					require.NoError(t, b.Process.Signal(syscall.SIGUSR1))
					b.requireStatus(t, 128+int(syscall.SIGUSR1))
					requireGone(t, pids...)
					return
				}
				if sig == syscall.SIGKILL {
					waitGone(t, pids...)
					return
				}
				want := 128 + int(sig)
				if name == "Deaf" {
					want = 128 + int(syscall.SIGKILL)
				}
				b.requireStatus(t, want)
				requireGone(t, pids...)
			})
		}
	}
}

// TestRun_Frozen: a holder that is stopped loses its lock, and its command is dead before the next one starts.
func TestRun_Frozen(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for name, script := range families {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, pids := holdShortly(t, dsn, name, script)
			next := call(t, dsn, append([]string{"run", name, "--"}, witness(pids)...)...)
			require.NoError(t, b.Process.Signal(syscall.SIGSTOP))
			require.Equal(t, "seen\n", next.requireStatus(t, 0))
			require.NoError(t, b.Process.Signal(syscall.SIGCONT))
			b.requireStatus(t, 76)
		})
	}
}
