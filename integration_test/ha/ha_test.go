// Package ha tests the whole library on a cluster of PostgreSQL servers that fails over under load: three servers under
// Patroni, with an etcd, on this machine. See the package storm of the internal ones for what is judged.
package ha

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
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
	name        string
	synchronous bool
	// direct reports that the last process knows the servers' addresses and looks for the one that writes, while the others go
	// through a proxy that follows the leader. A process that looks for itself would take a primary that goes on after its
	// replacement for the primary, so no such run has Thaw.
	direct bool
	kinds  []patroni.Kind // in turn
}

var plans = []plan{
	{"synchronous", true, true, []patroni.Kind{patroni.Switchover, patroni.Behind, patroni.Fence, patroni.Kill}},
	{"asynchronous", false, false, []patroni.Kind{patroni.Behind, patroni.Thaw, patroni.Switchover, patroni.Kill}},
}

var engines = []pgbaton.Engine{pgbaton.EngineSession, pgbaton.EngineLease}

// failovers returns how many failovers there are in a run.
func failovers(t *testing.T) int {
	t.Helper()
	text := os.Getenv("PGBATON_FAILOVERS")
	if text == "" {
		return testkit.Brief(10, 2)
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, "PGBATON_FAILOVERS")
	return n
}

func TestFailovers(t *testing.T) {
	for _, engine := range engines {
		for _, p := range plans {
			name := fmt.Sprintf("%s/%s", engine, p.name)
			t.Run(name, func(t *testing.T) {
				outcome := run(t, p, engine)
				outcome.Print(t.Output())
				table(t.Output(), name, outcome)
				path := filepath.Join("..", "results", fmt.Sprintf("ha-%s-%s.json", engine, p.name))
				require.NoError(t, storm.Save(path, outcome))
				require.Empty(t, outcome.Violations)
				require.GreaterOrEqual(t, len(outcome.Failovers), failovers(t))
				require.NotZero(t, outcome.Holds)
			})
		}
	}
}

// run starts a cluster and lets a storm happen on it.
func run(t *testing.T, p plan, engine pgbaton.Engine) *storm.Outcome {
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
		Engine: string(engine), Processes: processes, Clients: 1, Seed: seed, Strict: ttl, Pause: 30 * time.Millisecond,
	}
	opts.Addresses = slices.Repeat([]string{proxy.Addr()}, processes)
	if p.direct {
		opts.Addresses[processes-1] = strings.Join(cluster.Addresses(), ",")
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

// table writes what became of the failovers of each kind.
func table(w io.Writer, name string, o *storm.Outcome) {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "%s, PostgreSQL %d: %d operations tried, %d granted, %d lost, %d holds judged, %d violations, %d overlaps of at most %v\n",
		name, o.Major, o.Total.Tried, o.Total.Granted, o.Total.Lost, o.Holds, len(o.Violations), o.Overlaps.Count, o.Overlaps.Max)
	fmt.Fprintf(out, "%d commits forgotten by failovers, %d runs repeated after them\n", o.Forgotten, o.Repeated)
	fmt.Fprintln(out, "kind\tfailovers\tno locks anywhere, p50\tmax\tnone in one process, p50\tmax\tnew leader, p50\tmax")
	kinds := map[string][]storm.Failover{}
	var order []string
	for _, f := range o.Failovers {
		if kinds[f.Kind] == nil {
			order = append(order, f.Kind)
		}
		kinds[f.Kind] = append(kinds[f.Kind], f)
	}
	for _, kind := range order {
		var without, last, led []int64
		for _, f := range kinds[kind] {
			without, last, led = append(without, int64(f.Without)), append(last, int64(f.Last)), append(led, f.Led-f.Began)
		}
		fmt.Fprintf(out, "%s\t%d", kind, len(kinds[kind]))
		for _, values := range [][]int64{without, last, led} {
			s := lab.NewSpread(values)
			fmt.Fprintf(out, "\t%v\t%v", s.At(50).Round(time.Millisecond), s.Max().Round(time.Millisecond))
		}
		fmt.Fprintln(out)
	}
	_ = out.Flush() // to the terminal
}

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
