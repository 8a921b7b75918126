// Package ha tests the whole library on a cluster of PostgreSQL servers that fails over under load: three servers under
// Patroni, with an etcd, on this machine. See the package storm of the internal ones for what is judged.
package ha

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/patroni"
	"github.com/pgbaton/pgbaton/integration_test/internal/storm"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(m)
}

const (
	seed      = 20250701
	processes = 3
	// ttl is the library's own default. Nine tenths of it are less than Patroni's lease less its loop, so every holder on a frozen
	// primary has stopped trusting its locks before another primary can grant them.
	ttl = 15 * time.Second
)

// plan is a run on a cluster of its own.
type plan struct {
	engine      pgbaton.Engine
	synchronous bool
	// pooled reports that the clients go through a PgBouncer in transaction mode as well.
	pooled bool
	// direct reports that the last process knows the servers' addresses and looks for the one that writes, while the others go
	// through a proxy that follows the leader. A process that looks for itself would take a primary that goes on after its
	// replacement for the primary, so no such run has Thaw.
	direct bool
	kinds  []patroni.Kind // in turn
}

func (p plan) String() string {
	name := string(p.engine) + "/" + map[bool]string{true: "synchronous", false: "asynchronous"}[p.synchronous]
	if p.pooled {
		name += "/pooled"
	}
	return name
}

var (
	fenced = []patroni.Kind{patroni.Switchover, patroni.Behind, patroni.Fence, patroni.Kill}
	thawed = []patroni.Kind{patroni.Behind, patroni.Thaw, patroni.Switchover, patroni.Kill}

	plans = []plan{
		{engine: pgbaton.EngineSession, synchronous: true, direct: true, kinds: fenced},
		{engine: pgbaton.EngineSession, kinds: thawed},
		{engine: pgbaton.EngineLease, synchronous: true, direct: true, kinds: fenced},
		{engine: pgbaton.EngineLease, kinds: thawed},
		{engine: pgbaton.EngineLease, synchronous: true, pooled: true, kinds: thawed},
		{engine: pgbaton.EngineLease, pooled: true, kinds: thawed},
	}
)

// failovers returns how many failovers there are in a run.
func failovers(t *testing.T) int {
	t.Helper()
	text := os.Getenv("PGBATON_FAILOVERS")
	if text == "" {
		return testkit.Brief(len(fenced), 1)
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "PGBATON_FAILOVERS")
	return n
}

func TestFailovers(t *testing.T) {
	var all []result
	for _, p := range plans {
		t.Run(p.String(), func(t *testing.T) {
			outcome := run(t, p)
			all = append(all, result{p.String(), outcome})
			outcome.Print(t.Output())
			table(t.Output(), all[len(all)-1:])
			path := filepath.Join("..", "results", "ha-"+strings.ReplaceAll(p.String(), "/", "-")+".json")
			require.NoError(t, storm.Save(path, outcome))
			require.Empty(t, outcome.Violations)
			require.GreaterOrEqual(t, len(outcome.Failovers), failovers(t))
			require.NotZero(t, outcome.Holds)
		})
	}
	table(t.Output(), all)
}

// run starts a cluster and lets a storm happen on it.
func run(t *testing.T, p plan) *storm.Outcome {
	t.Helper()
	// Not the context of the test, which ends before the cleanups in which clients still use the cluster.
	ctx, cancel := context.WithCancel(context.Background())
	cluster, err := patroni.Start(ctx, p.synchronous)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			keep(t, cluster.Logs())
		}
		require.NoError(t, cluster.Stop(context.Background()))
	})
	proxy, err := storm.NewProxy("")
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	followed := cluster.Follow(ctx, proxy)
	t.Cleanup(func() {
		cancel()
		followed()
	})
	require.Eventually(t, func() bool { return proxy.Target() != "" }, lab.Hang, 20*time.Millisecond)

	opts := storm.Options{
		Kind: storm.Failovers, Server: server{cluster, proxy}, Script: script(t, cluster, p), TTL: ttl,
		Engine: string(p.engine), Processes: processes, Clients: 1, Seed: seed, Strict: ttl, Pause: 30 * time.Millisecond,
	}
	opts.Addresses = slices.Repeat([]string{proxy.Addr()}, processes)
	if p.direct {
		opts.Addresses[processes-1] = strings.Join(cluster.Addresses(), ",")
	}
	if p.pooled {
		// Without the last setting a pooler that has not reached the server tries again after 15 s.
		through := lab.PgBouncer(t, cluster.URL(proxy.Addr()), "transaction", "default_pool_size = 20", "server_login_retry = 1")
		pooler, err := url.Parse(through)
		require.NoError(t, err)
		opts.Pooler = pooler.Host
	}
	return storm.Run(ctx, t, opts)
}

// server is a cluster as a storm sees it: by the proxy that leads to the leader.
type server struct {
	*patroni.Cluster
	proxy *storm.Proxy
}

func (s server) URL() string { return s.Cluster.URL(s.proxy.Addr()) }

// script lets the failovers of a plan happen.
func script(t *testing.T, cluster *patroni.Cluster, p plan) storm.Script {
	return func(ctx context.Context, settle func()) (list []storm.Failover) {
		add := func(f patroni.Failover) {
			t.Logf("%s of %s: %s leads after %v, whole after %v", f.Kind, f.From, f.To,
				since(f.Began, f.Led), since(f.Began, f.Ended))
			list = append(list, storm.Failover{
				Kind: string(f.Kind), Began: f.Began, Led: f.Led, Ended: f.Ended,
				// The library's own records wait for no other server, in a synchronous cluster either.
				Whole: f.Whole, Lost: f.Lost, Records: f.Loses, Commits: f.Loses && !p.synchronous,
			})
		}
		for i := range failovers(t) + 1 {
			unplanned, err := cluster.Unplanned(ctx)
			if err != nil {
				t.Errorf("before failover %d: %v", i+1, err)
				return list
			}
			if unplanned != nil {
				add(*unplanned)
			}
			if i == failovers(t) {
				break
			}
			f, err := cluster.Fail(ctx, p.kinds[i%len(p.kinds)])
			if err != nil {
				t.Errorf("failover %d: %v", i+1, err)
				return list
			}
			add(f)
			settle()
		}
		return list
	}
}

func since(from, to int64) time.Duration { return time.Duration(to - from).Round(time.Millisecond) }

// keep leaves the programs' output where it survives the test.
func keep(t *testing.T, logs string) {
	t.Helper()
	path := filepath.Join("..", "results", strings.ReplaceAll(t.Name(), "/", "-")+"-cluster.txt")
	err := os.MkdirAll(filepath.Dir(path), 0o755) //nolint:gosec // for everybody to read
	if err == nil {
		err = os.WriteFile(path, []byte(logs), 0o600)
	}
	t.Logf("see %s (%v)", path, err)
}
