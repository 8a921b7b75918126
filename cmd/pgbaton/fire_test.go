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
	var seen atomic.Int64
	for lane := range lanes {
		t.Run(fmt.Sprint(lane), func(t *testing.T) {
			t.Parallel()
			proxy, _ := testkit.Through(t, dsn)
			through, key := proxy.URL(t, dsn), fmt.Sprint("cut/", lane)
			for range rounds {
				cutOff(t, dsn, through, key, proxy)
				t.Logf("the network was cut, and the first command was dead before the second one began: %d of %d", seen.Add(1), lanes*rounds)
			}
		})
	}
}

// cutOff is a round.
func cutOff(t *testing.T, dsn, through, key string, proxy *testkit.Proxy) {
	t.Helper()
	b, pids := holdShortly(t, through, key, families["Group"])
	next := call(t, dsn, append([]string{"run", key, "--"}, witness(pids)...)...)
	proxy.Stall(true)
	require.Equal(t, "seen\n", next.requireStatus(t, 0))
	b.requireStatus(t, 76)
	proxy.Cut()
	proxy.Stall(false)
}

// sqlCrowd reports whether so many runs wait.
const sqlCrowd = `SELECT count(*) >= $1 FROM pg_stat_activity AS a WHERE a.query LIKE '%wait_for_turn%'
	AND a.application_name = 'pgbaton/waiter' AND a.datname = current_database()`

// TestFire_StoppedWhileWaiting: of many that wait while the lock is released, none starts a command after a signal to stop. In half
// of the rounds the signals come first, in the other half at some moment while the next in line has the lock, and starts its command; one that has
// begun before its signal is stopped by it.
func TestFire_StoppedWhileWaiting(t *testing.T) { // alone: it has so many sessions
	const (
		pause     = 50 * time.Millisecond
		beginning = 300 * time.Millisecond // until a command that got the lock has begun, about
	)
	crowd, rounds := testkit.Brief(20, 4), testkit.Brief(200, 2)
	dsn := testkit.Migrated(t)
	holder := client(t, dsn)
	conn := testkit.Connect(t, dsn)
	started := filepath.Join(t.TempDir(), "started")
	ran := 0
	for round := range rounds {
		lock, err := holder.Acquire(t.Context(), pgbaton.Name("k"))
		require.NoError(t, err)
		waiting := make([]*baton, crowd)
		for i := range waiting {
			waiting[i] = call(t, dsn, "run", "k", "--name", "waiter", "--", "sh", "-c", `echo $$ >> "$0"; exec sleep 999`, started)
		}
		testkit.Eventually(t, "all wait", func() bool {
			time.Sleep(pause) // a look costs the server more than a waiter does
			return testkit.Value[bool](t, conn, sqlCrowd, crowd)
		})
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
		t.Logf("round %d of %d: %d waited, and were stopped; so far %d commands had begun before their signal", round+1, rounds, crowd, ran)
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
