package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// unexecutable is a program whose exec hangs, as on a network that is dead: this process has a lease on the file, which the kernel asks back, and
// waits for while it opens the file. The condition holds when an exec hangs.
func unexecutable(t *testing.T) (path string, hangs func() bool) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "program")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho it ran\n"), 0o700)) //nolint:gosec // it is a program
	file, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	_, err = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	require.NoError(t, err)
	return path, func() bool {
		lease, err := unix.FcntlInt(file.Fd(), unix.F_GETLEASE, 0)
		require.NoError(t, err)
		return lease != unix.F_WRLCK
	}
}

// TestRun_HangingExec: a program that the system does not execute keeps nobody from stopping the call, and is gone when the lock is.
func TestRun_HangingExec(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for name, c := range map[string]struct {
		end    func(t *testing.T, b *baton)
		status int
		says   string
		ttl    string
	}{
		"TERM": {
			end:    func(t *testing.T, b *baton) { require.NoError(t, b.Process.Signal(unix.SIGTERM)) },
			status: 128 + int(unix.SIGTERM), says: "no command was started", ttl: longTTL,
		},
		"HUP": {
			end:    func(t *testing.T, b *baton) { require.NoError(t, b.Process.Signal(unix.SIGHUP)) },
			status: 128 + int(unix.SIGHUP), says: "no command was started", ttl: longTTL,
		},
		"Lost": {
			end: func(t *testing.T, _ *baton) {
				testkit.Exec(t, testkit.Connect(t, dsn),
					"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'hang-Lost'")
			},
			status: 76, says: "no command was started", ttl: longTTL,
		},
		"Life": {end: func(*testing.T, *baton) {}, status: 126, says: "has not executed it in time", ttl: shortTTL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, hangs := unexecutable(t)
			b := call(t, testkit.Named(t, dsn, "hang-"+name), "run", name, c.ttl, "--", path)
			testkit.Eventually(t, "the exec hangs", hangs)
			c.end(t, b)
			require.Empty(t, b.requireStatus(t, c.status), "nothing of it ran")
			require.Contains(t, b.stderr.String(), c.says)
		})
	}
}
