//go:build unix

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// TestFire_NetworkCut drops all packets of a holder: its command is dead before the next one starts, every time. A round is little more than
// a wait for the end of a TTL, so there are several lanes at a time, each with a key and a network of its own.
func TestFire_NetworkCut(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	lanes, rounds := testkit.Brief(5, 1), testkit.Brief(10, 2)
	ways := []string{families["Session"], families["Group"], families["Deaf"]}
	var seen atomic.Int64
	for lane := range lanes {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			t.Parallel()
			proxy, _ := testkit.Through(t, dsn)
			through, key := proxy.URL(t, dsn), fmt.Sprint("cut/", lane)
			for round := range rounds {
				cutOff(t, dsn, through, key, ways[round%len(ways)], proxy)
				t.Logf("the network was cut, and the first command was dead before the second one began: %d of %d", seen.Add(1), lanes*rounds)
			}
		})
	}
}

// cutOff is a round.
func cutOff(t *testing.T, dsn, through, key, script string, proxy *testkit.Proxy) {
	t.Helper()
	b, pids := holdShortly(t, through, key, script)
	next := call(t, dsn, append([]string{"run", key, "--"}, witness(pids)...)...)
	proxy.Stall(true)
	require.Equal(t, "seen\n", next.requireStatus(t, 0))
	b.requireStatus(t, 76)
	proxy.Cut()
	proxy.Stall(false)
}

// crowd is so many calls that wait for the lock.
type crowd []*baton

// sqlWaiting lists which of a crowd have a session in the server's queue, or between two slices of a wait.
const sqlWaiting = `SELECT coalesce(array_agg(DISTINCT a.application_name), '{}') FROM pg_stat_activity AS a
	WHERE a.query LIKE '%wait_for_turn%' AND a.application_name LIKE 'pgbaton/waiter-%' AND a.datname = current_database()`

// sqlSessions is what the sessions of a crowd do, for a failure.
const sqlSessions = `SELECT coalesce(string_agg(concat_ws(' ', application_name, state, wait_event_type, wait_event, query), E'\n'), 'none') FROM pg_stat_activity
	WHERE application_name LIKE 'pgbaton/waiter-%' AND datname = current_database()`

// waits returns when each has been seen to wait. They need not be seen at one moment: nobody ends a wait while the lock is held, but its
// session sends other statements at times.
func (c crowd) waits(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	const pause = 50 * time.Millisecond // a look costs the server more than a waiter does
	seen := map[string]bool{}
	for end := time.Now().Add(2 * testkit.Patience); len(seen) < len(c); time.Sleep(pause) {
		for _, name := range testkit.Value[[]string](t, conn, sqlWaiting) {
			seen[name] = true
		}
		for i, b := range c {
			if b.hasEnded(t) {
				require.Fail(t, "a waiter has ended", "number %d: %v: %s", i, b.Wait(), b.stderr)
			}
		}
		if time.Now().After(end) {
			require.Fail(t, "a waiter does not wait", "%d of %d do: %v; sessions: %s", len(seen), len(c), seen, testkit.Value[string](t, conn, sqlSessions))
		}
	}
}

// TestFire_StoppedWhileWaiting: of many that wait while the lock is released, none starts a command after a signal to stop. In half
// of the rounds the signals come first, in the other half at some moment while the next in line has the lock, and starts its command; one that has
// begun before its signal is stopped by it.
func TestFire_StoppedWhileWaiting(t *testing.T) { // alone: it has so many sessions
	const beginning = 300 * time.Millisecond // until a command that got the lock has begun, about
	size, rounds := testkit.Brief(20, 4), testkit.Brief(200, 2)
	dsn := testkit.Migrated(t)
	holder := client(t, dsn)
	conn := testkit.Connect(t, dsn)
	started := filepath.Join(t.TempDir(), "started")
	ran := 0
	for round := range rounds {
		lock, err := holder.Acquire(t.Context(), pgbaton.Name("k"))
		require.NoError(t, err)
		waiting := make(crowd, size)
		for i := range waiting {
			waiting[i] = call(t, dsn, "run", "k", "--name", fmt.Sprint("waiter-", i), "--", "sh", "-c", `echo $$ >> "$0"; exec sleep 999`, started)
		}
		waiting.waits(t, conn)
		first := round%2 == 0
		if !first {
			require.NoError(t, lock.Release(context.Background()))
			time.Sleep(rand.N(beginning)) //nolint:gosec // no secret
		}
		for _, b := range waiting {
			require.NoError(t, b.Process.Signal(syscall.SIGTERM))
		}
		if first {
			require.NoError(t, lock.Release(context.Background()))
		}
		for _, b := range waiting {
			b.requireStatus(t, 128+15)
		}
		ran += requireStopped(t, started, first)
		t.Logf("round %d of %d: %d waited, and were stopped; so far %d commands had begun before their signal", round+1, rounds, size, ran)
	}
}

// requireStopped makes sure that no command is left that has written down its number, and none has begun if the signals came first. It
// returns how many have begun.
func requireStopped(t *testing.T, started string, first bool) int {
	t.Helper()
	text, err := os.ReadFile(started)
	if err != nil {
		require.ErrorIs(t, err, os.ErrNotExist)
		return 0
	}
	require.False(t, first, "a command was started after the signal: %s", text)
	pids := numbers(t, strings.ReplaceAll(string(text), "\n", " "))
	requireGone(t, pids...)
	require.NoError(t, os.Remove(started))
	return len(pids)
}
