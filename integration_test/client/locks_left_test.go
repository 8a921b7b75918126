package client

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// The keys with which the library says who lives and who is next are no locks of anybody's.
func TestLocks_NothingElse(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	ctx := testkit.Context(t)
	clients := make([]*pgbaton.Client, 4)
	for i := range clients {
		clients[i] = testclient.New(t, dsn, &pgbaton.Config{Name: fmt.Sprint("c", i)})
	}
	sem, err := clients[0].Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	permit, err := sem.Acquire(ctx, 1)
	require.NoError(t, err)
	lock, err := clients[0].Acquire(ctx, pgbaton.Name("a"))
	require.NoError(t, err)
	waiting, stop := context.WithCancel(ctx)
	over := make(chan error)
	for _, c := range clients[1:] {
		other, err := c.Semaphore(ctx, "s", 1)
		require.NoError(t, err)
		go func() {
			_, err := c.Acquire(waiting, pgbaton.Name("a"))
			over <- err
		}()
		go func() {
			_, err := other.Acquire(waiting, 1)
			over <- err
		}()
	}
	all := len(clients)
	settled := 0
	listed(t, clients[0], nil, "two holders and their waiters", func(found []pgbaton.LockInfo) bool {
		named := 0
		for _, l := range found {
			if l.Name == "a" || l.Name == "s" {
				named++
			}
		}
		if len(found) == named && named == 2*all {
			settled++
		}
		return settled == 5 // and again, while the waiters wait on
	})
	stop()
	for range 2 * (all - 1) {
		require.ErrorIs(t, <-over, context.Canceled)
	}
	require.NoError(t, permit.Release(ctx))
	require.NoError(t, lock.Release(ctx))
	listed(t, clients[0], nil, "nothing", func(found []pgbaton.LockInfo) bool { return len(found) == 0 })
}

// What the dead have published is not shown, and the next to publish or to list removes it.
func TestLocks_OfTheDead(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	dead := testclient.Open(t, dsn, &pgbaton.Config{Name: "dead", TTL: testkit.Patience, Engine: testclient.Engine()})
	other := testclient.New(t, dsn, nil)
	_, err := dead.Acquire(ctx, pgbaton.Name("dead"))
	require.NoError(t, err)
	busy, err := other.Acquire(ctx, pgbaton.Name("busy"))
	require.NoError(t, err)
	waiting, stop := context.WithCancel(ctx)
	over := make(chan error)
	go func() {
		_, err := dead.Acquire(waiting, pgbaton.Name("busy"))
		over <- err
	}()
	listed(t, other, &pgbaton.LockFilter{Client: "dead"}, "what it holds and waits for", func(all []pgbaton.LockInfo) bool {
		return count(all, "waiting") == 1 && count(all, "held") == 2
	})
	// A client that cannot come back: its sessions end, and so do those that it opens.
	done := make(chan struct{})
	go func() {
		defer close(done)
		stopped, cancel := context.WithCancel(ctx)
		cancel()
		_ = dead.Close(stopped)
	}()
	stop()
	require.Error(t, <-over)
	<-done
	testkit.WaitFor(t, conn, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'pgbaton/dead')")
	ghosts := func() {
		testkit.Exec(t, conn, `INSERT INTO pgbaton.registry (kind, holder, publisher, since, name, key)
			SELECT k, 4711, 1, clock_timestamp(), 'ghost', 1 FROM unnest('{held,waiting,watched}'::text[]) AS k`)
	}
	left := func(kinds string) int {
		return testkit.Value[int](t, conn, "SELECT count(*)::int FROM pgbaton.registry WHERE name IN ('dead', 'ghost') AND kind = ANY ($1::text[])", kinds)
	}
	ghosts()
	testkit.Exec(t, conn, `SELECT pgbaton.publish_locks(2, 1, '{}', 'sweeper', '', 1, 0, false, true, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')`)
	require.Zero(t, left("{held,waiting,client}"), "the next publication removes it")
	ghosts()
	require.Equal(t, []string{"busy"}, testkit.Value[[]string](t, conn, "SELECT array_agg(name) FROM pgbaton.locks"), "it is not shown")
	listed(t, other, nil, "what the other one holds", func(all []pgbaton.LockInfo) bool { return len(all) == 1 && all[0].Name == "busy" })
	require.Zero(t, left("{held,waiting,watched,client}"), "the next listing removes it")
	require.NoError(t, busy.Release(ctx))
}

// A client with private names publishes numbers, and its own name, host and process.
func TestLocks_Private(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	host, err := os.Hostname()
	require.NoError(t, err)
	a := testclient.New(t, dsn, &pgbaton.Config{Private: true, Name: "anna"})
	outer, err := a.Acquire(ctx, pgbaton.Name("secret"))
	require.NoError(t, err)
	taken, err := a.Acquire(ctx, pgbaton.Name("secret too"))
	require.NoError(t, err)
	got := background(t, func() (*pgbaton.Lock, error) { return a.Acquire(outer.Context(), pgbaton.Name("secret too")) })
	for key, holders := range map[string]int{"secret": 2, "secret too": 1} { // its own and those of what it is behind
		found := listed(t, a, &pgbaton.LockFilter{Key: pgbaton.Name(key)}, key, func(all []pgbaton.LockInfo) bool {
			return count(all, "held") == holders && count(all, "waiting") == 1 && all[0].Token != 0 &&
				!slices.ContainsFunc(all, func(l pgbaton.LockInfo) bool { return l.Host == "" })
		})
		for _, l := range found {
			require.Empty(t, l.Name)
			require.Equal(t, "anna", l.Client)
			require.Equal(t, host, l.Host)
			require.Equal(t, os.Getpid(), l.Process)
		}
	}
	require.Zero(t, testkit.Value[int](t, conn, `SELECT count(*)::int FROM (
		SELECT name FROM pgbaton.registry UNION ALL SELECT name FROM pgbaton.lease) AS n WHERE n.name LIKE '%secret%'`))
	require.NoError(t, taken.Release(ctx))
	require.NoError(t, (<-got).Release(ctx))
	require.NoError(t, outer.Release(ctx))
}

// Short locks write nothing, and long ones a statement each time that something has changed.
func TestLocks_NothingOfShortOnes(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	a := testclient.New(t, dsn, nil)
	written := func() int64 {
		return testkit.Value[int64](t, conn, "SELECT last_value FROM pgbaton.registry_id_seq WHERE is_called UNION ALL SELECT 0 ORDER BY 1 DESC LIMIT 1")
	}
	for attempts := 0; ; attempts++ {
		require.Less(t, attempts, 20, "a pair took a second each time")
		before, slowest := written(), time.Duration(0)
		for began := time.Now(); time.Since(began) < 4*time.Second; {
			pair := time.Now()
			lock, err := a.Acquire(ctx, pgbaton.Name("short"))
			require.NoError(t, err)
			require.NoError(t, lock.Release(ctx))
			slowest = max(slowest, time.Since(pair))
		}
		if slowest < time.Second/2 {
			require.Equal(t, before, written())
			return
		}
	}
}

// A refusal says that the client itself is in the way.
func TestTryAcquire_SaysThatTheClientHoldsIt(t *testing.T) {
	t.Parallel()
	a, b, _ := pair(t)
	ctx := testkit.Context(t)
	key := pgbaton.Name("here")
	lock, err := a.Acquire(ctx, key)
	require.NoError(t, err)
	_, err = a.TryAcquire(ctx, key)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.EqualError(t, err, "pgbaton: "+`acquire lock "here": not acquired: this client holds it itself`)
	_, err = b.TryAcquire(ctx, key)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NotContains(t, err.Error(), "itself")
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = a.Acquire(short, key)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "this client holds it itself")
	require.NoError(t, lock.Release(ctx))
}
