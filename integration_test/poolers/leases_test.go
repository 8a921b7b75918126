package poolers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// leaseClients is how many clients there are to a pooler, each with up to two connections: as many as [clients] in all.
func leaseClients() int { return testkit.Brief(clients/2, clients/8) }

// crowd is clients that take the same few keys, as leases, until it is ended.
type crowd struct {
	t       *testing.T
	clients []*pgbaton.Client
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	keys    [10]struct {
		holders, token atomic.Int64 // at this moment; the newest
		grants         atomic.Int64
	}

	mu       sync.Mutex
	failures map[string]int
}

func newCrowd(t *testing.T, through string) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{t: t, cancel: cancel, failures: map[string]int{}}
	t.Cleanup(func() { c.end() })
	for range leaseClients() {
		c.clients = append(c.clients, testclient.Open(t, through, &pgbaton.Config{TTL: time.Minute}))
	}
	for i, client := range c.clients {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				c.hold(ctx, client, i%len(c.keys))
			}
		})
	}
	return c
}

// hold takes a key for a moment. A key that somebody has beside, or a token that does not rise, is a failure.
func (c *crowd) hold(ctx context.Context, client *pgbaton.Client, i int) {
	lock, err := client.Acquire(ctx, pgbaton.Name(fmt.Sprint("crowd/", i)))
	if err != nil {
		if ctx.Err() == nil {
			c.fail("acquire", err)
		}
		return
	}
	key := &c.keys[i]
	if n := key.holders.Add(1); n != 1 {
		c.fail("exclusion", fmt.Errorf("%d hold one key", n))
	}
	if before := key.token.Swap(int64(lock.Token())); before >= int64(lock.Token()) {
		c.fail("tokens", fmt.Errorf("%d after %d", lock.Token(), before))
	}
	time.Sleep(time.Millisecond)
	key.holders.Add(-1)
	if err := lock.Release(context.Background()); err != nil {
		c.fail("release", err)
	}
	key.grants.Add(1)
}

func (c *crowd) fail(what string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures[what+": "+err.Error()]++
}

// requireProgress waits until each key has been granted and given back since now, and returns how long that took.
func (c *crowd) requireProgress(after string) (took int64) {
	c.t.Helper()
	began := time.Now()
	for i := range c.keys {
		before := c.keys[i].grants.Load()
		testkit.Eventually(c.t, fmt.Sprintf("key %d is granted after %s", i, after), func() bool {
			return c.keys[i].grants.Load() > before+1
		})
	}
	return int64(time.Since(began))
}

// end ends the crowd and returns its failures, by text.
func (c *crowd) end() map[string]int {
	c.cancel()
	c.wg.Wait()
	for _, client := range c.clients {
		if err := client.Close(context.Background()); err != nil {
			c.fail("close", err)
		}
	}
	c.clients = nil
	return c.failures
}

// Locks are leases behind a pooler that lends connections for a transaction or a statement, with up to 200 client connections on 5
// server ones. Server connections that are replaced, and a pooler that dies and comes back, cost no lock and fail no call.
func TestLeases(t *testing.T) {
	t.Parallel()
	poolers := map[string]struct {
		mode     string
		settings []string
	}{
		"transaction":               {mode: "transaction"},
		"server_reset_query_always": {"transaction", []string{"server_reset_query_always = 1"}},
		"statement":                 {mode: "statement"},
	}
	if lab.PgBouncerKeepsStatements(t) {
		for name, number := range map[string]string{"max_prepared_statements off": "0", "max_prepared_statements on": "100"} {
			p := poolers["transaction"]
			p.settings = []string{"max_prepared_statements = " + number}
			poolers[name] = p
		}
	}
	for name, p := range poolers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pooler := lab.StartPgBouncer(t, lab.Database(t), p.mode, append(p.settings, "default_pool_size = "+places, "max_client_conn = 250")...)
			c := newCrowd(t, pooler.URL)
			began := time.Now()
			c.requireProgress("the start")
			rounds := testkit.Brief(5, 2)
			var reconnects, restarts []int64
			for range rounds {
				pooler.Tell(t, "RECONNECT")
				reconnects = append(reconnects, c.requireProgress("RECONNECT"))
			}
			for range rounds {
				pooler.Restart(t)
				restarts = append(restarts, c.requireProgress("the restart"))
			}
			testkit.Figure(t, "leases, %s: until each of %d keys was granted again: after RECONNECT %v; after a restart %v",
				name, len(c.keys), lab.NewSpread(reconnects), lab.NewSpread(restarts))
			var grants int64
			for i := range c.keys {
				grants += c.keys[i].grants.Load()
			}
			testkit.Figure(t, "leases, %s: %d grants in %v", name, grants, time.Since(began))
			require.Empty(t, c.end())
		})
	}
}

// A pooler without a free server connection: the wait ends with the caller's context, and when there is room again the client goes
// on. Where the pooler says that it is full, the error says so.
func TestLeases_Full(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings []string
		says     string
	}{
		"Waits":  {nil, ""},
		"SaysSo": {[]string{"query_wait_timeout = 1"}, "the connection pooler's pool is full"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := lab.PgBouncer(t, lab.Database(t), "transaction", append(c.settings, "default_pool_size = 1")...)
			client, err := pgbaton.Open(t.Context(), through, &pgbaton.Config{TTL: time.Minute})
			require.NoError(t, err)
			key := pgbaton.Name("k")
			lock, err := client.Acquire(t.Context(), key)
			require.NoError(t, err)
			require.NoError(t, lock.Release(t.Context()))
			leave := occupy(t, through)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			_, err = client.Acquire(ctx, key)
			cancel()
			t.Log(err)
			require.Error(t, err)
			if c.says == "" || !errors.Is(err, pgbaton.ErrPooler) {
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			if c.says != "" {
				_, err = pgbaton.Open(t.Context(), through, nil)
				t.Log(err)
				require.ErrorContains(t, err, c.says)
			}
			leave()
			lock, err = client.Acquire(t.Context(), key)
			require.NoError(t, err)
			require.NoError(t, lock.Release(t.Context()))
			require.NoError(t, client.Close(t.Context()))
		})
	}
}
