//go:build unix

package main

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestWait(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	call(t, dsn, "wait", "k").requireStatus(t, 0)
	lock, err := client(t, dsn).AcquireShared(t.Context(), pgbaton.Name("k"))
	require.NoError(t, err)
	call(t, dsn, "wait", "k", "--wait", "10ms").requireStatus(t, 75)
	b := call(t, dsn, "wait", "k")
	testkit.WaitFor(t, testkit.Connect(t, dsn), sqlWaits)
	require.NoError(t, lock.Release(t.Context()))
	b.requireStatus(t, 0)
}

func TestLead(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	script := []string{"sh", "-c", `trap 'exit 5' USR1; echo $PGBATON_TOKEN $$; while :; do sleep 0.01; done`}
	lead := func(name string) *baton {
		return call(t, dsn, append([]string{"lead", "job", "--name", name, "--"}, script...)...)
	}
	terms := []int{0}
	term := func(b *baton) int {
		numbers := b.pids(t)
		require.Greater(t, numbers[0], terms[len(terms)-1])
		terms = append(terms, numbers[0])
		return numbers[1]
	}

	first := lead("first")
	pid := term(first)
	second := lead("second")
	testkit.WaitFor(t, testkit.Connect(t, dsn), "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'pgbaton/second' AND datname = current_database()")
	require.NoError(t, first.Process.Kill())
	next := term(second)
	waitGone(t, pid)

	// It resigns, and there is nobody else: it is elected again, with a new command.
	out := call(t, dsn, "resign", "job").requireStatus(t, 0)
	require.Contains(t, out, `asked second, which leads "job" since `)
	again := term(second)
	requireGone(t, next)
	require.NotEqual(t, next, again)

	// A lost term: a new command for the next one.
	testkit.Exec(t, testkit.Connect(t, dsn), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'pgbaton/second'`)
	last := term(second)
	requireGone(t, again)

	// The command's own end is that of lead.
	require.NoError(t, syscall.Kill(last, syscall.SIGUSR1))
	second.requireStatus(t, 5)
	require.Contains(t, second.stderr.String(), "resigned, as asked")
	call(t, dsn, "resign", "job").requireStatus(t, 1)
}

func TestLead_Stopped(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	b := call(t, dsn, "lead", "job", "--", "sh", "-c", "sleep 999 & echo $$ $!; wait")
	pids := b.pids(t)
	waiting := call(t, dsn, "lead", "job", "--name", "waiting", "--", "echo", "it ran")
	testkit.WaitFor(t, testkit.Connect(t, dsn), "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'pgbaton/waiting' AND datname = current_database()")
	require.NoError(t, waiting.Process.Signal(syscall.SIGTERM))
	require.Empty(t, waiting.requireStatus(t, 128+15))
	require.NoError(t, b.Process.Signal(syscall.SIGTERM))
	b.requireStatus(t, 128+15)
	requireGone(t, pids...)
}
