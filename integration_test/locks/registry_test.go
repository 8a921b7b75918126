package locks

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// throng is clients that hold many locks each, and wait for those of one another.
type throng struct {
	clients []*pgbaton.Client
	each    int // locks and waiters of a client
	waits   sync.WaitGroup
}

// gather has each client hold its locks, and then wait for those of the next client, ten goroutines for each of some.
func gather(ctx context.Context, t *testing.T, dsn string, clients, each int) *throng {
	t.Helper()
	g := &throng{each: each}
	var holds sync.WaitGroup
	for i := range clients {
		c := testclient.Open(t, dsn, &pgbaton.Config{Name: fmt.Sprint("c", i), TTL: testkit.Patience})
		g.clients = append(g.clients, c)
		holds.Go(func() {
			for n := range each {
				_, err := c.Acquire(ctx, g.key(i, n))
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	holds.Wait()
	for i, c := range g.clients {
		for n := range each {
			g.waits.Go(func() { _, _ = c.Acquire(ctx, g.key((i+1)%clients, n/10)) })
		}
	}
	return g
}

func (g *throng) key(client, n int) pgbaton.Key { return pgbaton.Name(fmt.Sprintf("%d/%d", client, n)) }

// Everything that many clients hold and wait for is listed by name, and nothing of it is left after them.
func TestRegistry_Many(t *testing.T) {
	t.Parallel()
	clients, each := 4, 100
	if lab.Figures() {
		clients, each = 20, 500
	}
	server := lab.OwnServer(t, map[string]string{"max_locks_per_transaction": "256", "max_connections": "150"})
	dsn := lab.DatabaseOn(t, server)
	control, operator := testkit.Connect(t, dsn), testclient.New(t, dsn, nil)
	ctx, cancel := context.WithCancel(testkit.Context(t))
	defer cancel()
	g := gather(ctx, t, dsn, clients, each)
	var spans []int64
	var found []pgbaton.LockInfo
	testkit.Eventually(t, "all are listed by name", func() bool {
		began := time.Now()
		var err error
		found, err = operator.Locks(ctx, nil)
		require.NoError(t, err)
		spans = append(spans, time.Since(began).Nanoseconds())
		named := 0
		for _, l := range found {
			if l.Name != "" {
				named++
			}
		}
		return named == 2*clients*each
	})
	require.Len(t, found, 2*clients*each)
	for range 5 {
		began := time.Now()
		_, err := operator.Locks(ctx, nil)
		require.NoError(t, err)
		spans = append(spans, time.Since(began).Nanoseconds())
	}
	lab.Report(t, fmt.Sprintf("listing %d locks and as many waiters", clients*each), lab.NewSpread(spans[len(spans)-5:]), time.Second)
	testkit.Figure(t, "registry of %d locks and as many waiters: %d rows, %d bytes with its indexes", clients*each,
		testkit.Value[int](t, control, "SELECT count(*)::int FROM pgbaton.registry"),
		testkit.Value[int](t, control, "SELECT pg_total_relation_size('pgbaton.registry')::int"))
	cancel()
	g.waits.Wait()
	for _, c := range g.clients {
		require.NoError(t, c.Close(context.Background()))
	}
	testkit.Eventually(t, "nothing is left", func() bool {
		return testkit.Value[int](t, control, "SELECT count(*)::int FROM pgbaton.registry") == 0
	})
}

// What publishing costs short locks of a client that also has long ones: beside them, of a client that does not publish since it has
// no connection for that.
func TestRegistry_Cost(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	ctx := testkit.Context(t)
	long, rounds := 50, 1
	if lab.Figures() {
		long, rounds = 300, 20
	}
	mute := testclient.New(t, dsn, &pgbaton.Config{Name: "mute", MaxConns: 2})
	loud := testclient.New(t, dsn, &pgbaton.Config{Name: "loud"})
	pairs := map[*pgbaton.Client][]int{}
	for _, c := range []*pgbaton.Client{mute, loud} {
		for n := range long {
			_, err := c.Acquire(ctx, pgbaton.Name(fmt.Sprintf("%p/%d", c, n)))
			require.NoError(t, err)
		}
	}
	for round := range rounds {
		changing, err := loud.Acquire(ctx, pgbaton.Name(fmt.Sprint("changing/", round)))
		require.NoError(t, err)
		for _, c := range []*pgbaton.Client{mute, loud} {
			n := 0
			for began := time.Now(); time.Since(began) < 1200*time.Millisecond; n++ {
				lock, err := c.Acquire(ctx, pgbaton.Name(fmt.Sprintf("%p", c)))
				require.NoError(t, err)
				require.NoError(t, lock.Release(ctx))
			}
			pairs[c] = append(pairs[c], n)
		}
		require.NoError(t, changing.Release(ctx))
	}
	for _, of := range pairs {
		slices.Sort(of)
	}
	without, with := pairs[mute][rounds/2], pairs[loud][rounds/2]
	testkit.Figure(t, "publishing: %d pairs in 1.2 s without, %d with: %.1f %% fewer (target 2 %%)", without, with,
		100*float64(without-with)/float64(max(without, 1)))
}
