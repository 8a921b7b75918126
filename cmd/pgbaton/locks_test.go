//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// standing is what `pgbaton ls --json` has of a holder or a waiter.
type standing struct {
	State, Kind, Key, Name, Client, Application string
	Token                                       int64
	Session, Permits                            int
	BlockedBy                                   []int `json:"blocked_by"`
}

// TestLocks: what is held and waited for is listed, drawn, completed and freed, on one database.
func TestLocks(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	out, _ := output(t, dsn, 0, "ls")
	require.Equal(t, "Nothing is held, and nobody waits.\n", out)
	out, _ = output(t, dsn, 0, "ls", "--json")
	require.JSONEq(t, "[]", out)

	foreign := testkit.Connect(t, dsn)
	testkit.Exec(t, foreign, "SELECT pg_advisory_lock(42), pg_advisory_lock(1, 2)")
	c := client(t, dsn)
	anna := call(t, dsn, "run", "invoice/42", "--name", "anna", "--", "sh", "-c", "echo ready; exec sleep 999")
	require.Equal(t, "ready", anna.line(t))
	_, err := c.Acquire(t.Context(), pgbaton.Name("odd \x1b[2J"))
	require.NoError(t, err)
	sem, err := c.Semaphore(t.Context(), "render", 5)
	require.NoError(t, err)
	for range 2 {
		_, err = sem.Acquire(t.Context(), 2)
		require.NoError(t, err)
	}
	bert := call(t, dsn, "run", "invoice/42", "--name", "bert", "--", "echo", "it is my turn")
	var all []standing
	testkit.Eventually(t, "names and waiters are published", func() bool {
		all = decoded[[]standing](t, dsn, 0, "ls")
		return len(all) == 7 && all[0].Name == "invoice/42" && all[1].State == "waiting" && all[2].Name != ""
	})
	require.Equal(t, []string{
		"held lock invoice/42", "waiting lock invoice/42", "held lock odd \x1b[2J", "held permit render", "held permit render", "held lock id:42",
		"held lock pair:1,2",
	}, stated(all))
	require.Equal(t, []string{"anna", "bert"}, []string{all[0].Client, all[1].Client})
	require.Equal(t, []int{0}, all[1].BlockedBy)
	require.Equal(t, 2, all[3].Permits)
	require.Equal(t, []string{"held lock invoice/42", "waiting lock invoice/42"}, stated(decoded[[]standing](t, dsn, 0, "ls", "invoice/42")))
	require.Equal(t, []string{"held lock id:42"}, stated(decoded[[]standing](t, dsn, 0, "ls", "id:42")))

	requireForPeople(t, dsn)
	requireCompleted(t, dsn)
	requireDryRun(t, dsn)
	requireRefused(t, dsn, int(foreign.PgConn().PID()), all[4].Token)

	require.Equal(t, "freed: 2 permits of render\n", freed(t, dsn, "render", "--token", strconv.FormatInt(all[4].Token, 10)))
	require.Equal(t, "freed: lock invoice/42\n", freed(t, dsn, "invoice/42", "--reason", "it hangs"))
	anna.requireStatus(t, 76)
	require.Contains(t, anna.stderr.String(), "freed by an operator")
	require.Contains(t, anna.stderr.String(), "it hangs")
	require.Equal(t, "it is my turn\n", bert.requireStatus(t, 0))
}

// requireForPeople looks at the listing as a table and as a tree.
func requireForPeople(t *testing.T, dsn string) {
	t.Helper()
	out, _ := output(t, dsn, 0, "ls")
	require.Regexp(t, `(?m)^held +lock invoice/42 +anna \(.*, process \d+\) +\d+s +\d+$`, out)
	require.Regexp(t, `(?m)^waiting +lock invoice/42 +bert \(.*\) +\d+s +anna`, out)
	require.Contains(t, out, `lock "odd \x1b[2J"`, "nothing that a terminal obeys")
	tree, _ := output(t, dsn, 0, "ls", "--tree", "invoice/42")
	require.Regexp(t, `^anna \(.*\) holds lock invoice/42, for \d+s, token \d+\n└─ bert \(.*\) waits for lock invoice/42, for \d+s\n$`, tree)
}

// requireCompleted completes names as a shell does.
func requireCompleted(t *testing.T, dsn string) {
	t.Helper()
	for _, c := range []struct{ args, want []string }{
		{[]string{"free", ""}, []string{"id:42", "invoice/42", "pair:1,2", "render"}},
		{[]string{"run", "in"}, []string{"invoice/42"}},
		{[]string{"wait", "i"}, []string{"id:42", "invoice/42"}},
		{[]string{"lead", ""}, nil},
		{[]string{"semaphore", "resize", ""}, []string{"render"}},
		{[]string{"free", "invoice/42", ""}, nil},
		{[]string{"run", "invoice/42", ""}, nil},
	} {
		var names []string
		testkit.Eventually(t, "the names are completed", func() bool { // a shell does not wait for as long as a slow machine may take
			out, _ := output(t, dsn, 0, append([]string{"__complete"}, c.args...)...)
			names = nil
			for line := range strings.Lines(out) {
				if name, about, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
					require.Regexp(t, "^(held|waited for) by ", about)
					names = append(names, name)
				}
			}
			return len(names) > 0 || c.want == nil
		})
		require.Equal(t, c.want, names, c.args)
	}
}

// requireDryRun has it said what would be freed.
func requireDryRun(t *testing.T, dsn string) {
	t.Helper()
	out, errs := output(t, dsn, 0, "free", "invoice/42", "--dry-run")
	require.Contains(t, errs, "lock invoice/42 is held by anna (")
	require.Contains(t, errs, "waiting for it: 1.")
	require.Equal(t, "would free: lock invoice/42\nIf the holder does not answer: Nothing else goes with its session.\n", out)
	var view struct {
		DryRun bool `json:"dry_run"`
		Freed  []standing
	}
	out, _ = output(t, dsn, 0, "free", "invoice/42", "--dry-run", "--json")
	require.NoError(t, json.Unmarshal([]byte(out), &view))
	require.True(t, view.DryRun)
	require.Equal(t, []string{"held lock invoice/42"}, stated(view.Freed))
}

// requireRefused tries to free what cannot be freed.
func requireRefused(t *testing.T, dsn string, foreign int, token int64) {
	t.Helper()
	_, errs := output(t, dsn, 2, "free", "invoice/42")
	require.Contains(t, errs, "say --yes")
	_, errs = output(t, dsn, 1, "free", "nothing", "--yes")
	require.Contains(t, errs, "nobody holds nothing")
	_, errs = output(t, dsn, 1, "free", "id:42", "--yes")
	require.Contains(t, errs, "SELECT pg_terminate_backend("+strconv.Itoa(foreign)+")")
	_, errs = output(t, dsn, 2, "free", "render", "--yes")
	require.Contains(t, errs, "2 hold render: choose one:\n  2 permits of render, held by ")
	require.Contains(t, errs, " --token "+strconv.FormatInt(token, 10))
}

// freed frees something, and again as long as a busy machine does not answer in time.
func freed(t *testing.T, dsn string, args ...string) (out string) {
	t.Helper()
	args = append([]string{"free", "--yes", "--keep-session"}, args...)
	testkit.Eventually(t, "it is freed", func() bool {
		b := call(t, dsn, args...)
		text, err := b.lines.ReadString(0)
		out = text
		return b.Wait() == nil || !strings.Contains(b.stderr.String(), "has not answered") && fails(t, err, b)
	})
	return out
}

func fails(t *testing.T, err error, b *baton) bool {
	t.Helper()
	require.Fail(t, "it cannot be freed", "%v: %s", err, b.stderr)
	return false
}

func stated(all []standing) []string {
	texts := make([]string, len(all))
	for i, s := range all {
		texts[i] = s.State + " " + s.Kind + " " + s.Key
	}
	return texts
}

// TestFree_Frozen: the holder does not answer, so its session goes, after it was said what else goes with it.
func TestFree_Frozen(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	holder := call(t, dsn, "run", "k", "--name", "frozen", "--", "sh", "-c", "echo ready; exec sleep 999")
	require.Equal(t, "ready", holder.line(t))
	testkit.Eventually(t, "the name is published", func() bool {
		all := decoded[[]standing](t, dsn, 0, "ls", "k")
		return len(all) == 1 && all[0].Token != 0
	})
	require.NoError(t, holder.Process.Signal(syscall.SIGSTOP))
	_, errs := output(t, dsn, 1, "free", "k", "--yes", "--keep-session")
	require.Contains(t, errs, "the holder has not answered")
	out, errs := output(t, dsn, 0, "free", "k", "--yes")
	require.Contains(t, errs, "The holder does not answer. Nothing else goes with its session.")
	require.Equal(t, "freed: lock k\n", out)
	call(t, dsn, "run", "k", "--", "true").requireStatus(t, 0)
	require.NoError(t, holder.Process.Signal(syscall.SIGCONT))
	holder.requireStatus(t, 76)
}

// TestLs_Watch lists again until it is interrupted, and what waits in the database as well.
func TestLs_Watch(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	holder, waiter := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	testkit.Exec(t, holder, "CREATE TABLE account (id int)")
	testkit.Exec(t, holder, "BEGIN; LOCK TABLE account")
	over := make(chan error, 1)
	go func() {
		_, err := waiter.Exec(testkit.Context(t), "SELECT count(*) FROM account")
		over <- err
	}()
	testkit.WaitFor(t, holder, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
	b := call(t, dsn, "ls", "--watch", "--all", "--tree", "--every", "100ms")
	for range 3 {
		require.Regexp(t, `^\d{4}-.*Z$`, b.line(t))
		require.Regexp(t, `^.*session \d+\)? has a transaction open$`, b.line(t))
		require.Regexp(t, `^└─ .*session \d+\)? waits for relation of account, for \d+s$`, b.line(t))
		require.Empty(t, b.line(t))
	}
	require.NoError(t, b.Process.Signal(syscall.SIGINT))
	b.requireStatus(t, 0)
	testkit.Exec(t, holder, "COMMIT")
	require.NoError(t, <-over)
}

// TestLs_Many lists what many clients hold, and as many waiters.
func TestLs_Many(t *testing.T) {
	t.Parallel()
	clients, each := testkit.Brief(20, 2), testkit.Brief(500, 50)
	dsn := testkit.Migrated(t)
	ctx, cancel := context.WithCancel(testkit.Context(t))
	defer cancel()
	var waits sync.WaitGroup
	for i := range clients {
		holder, waiter := client(t, dsn), client(t, dsn)
		for n := range each {
			key := pgbaton.Name(fmt.Sprintf("%d/%d", i, n))
			_, err := holder.Acquire(ctx, key)
			require.NoError(t, err)
			waits.Go(func() { _, _ = waiter.Acquire(ctx, key) })
		}
	}
	testkit.Eventually(t, "all are listed by name", func() bool {
		all := decoded[[]standing](t, dsn, 0, "ls")
		return len(all) == 2*clients*each && all[len(all)-1].Name != "" // names are before numbers
	})
	for _, flag := range []string{"--json=false", "--tree"} {
		began := time.Now()
		out, _ := output(t, dsn, 0, "ls", flag)
		testkit.Figure(t, "ls %s of %d locks and as many waiters: %v (target 1s)", flag, clients*each, time.Since(began))
		require.Equal(t, clients*each, strings.Count(out, "\n└─ ")+strings.Count(out, "\nwaiting "))
	}
	cancel()
	waits.Wait()
}

// TestLs_Role: a service sees no names of others, and is told what to do.
func TestLs_Role(t *testing.T) {
	t.Parallel()
	role := testkit.Role(t)
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, "SELECT pgbaton.grant_service('"+role+"')")
	_, err := client(t, dsn).Acquire(t.Context(), pgbaton.Name("k"))
	require.NoError(t, err)
	as := testkit.As(t, dsn, role)
	out, _ := output(t, as, 0, "ls")
	require.Regexp(t, `lock id:-?\d+`, out)
	_, errs := output(t, as, 1, "free", "k", "--yes")
	require.Contains(t, errs, "pgbaton.grant_operator('role')")
}
