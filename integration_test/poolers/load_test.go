package poolers

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	// clients is how many connections there are to the pooler, and places how many it has to the server.
	clients = 200
	places  = "5"
)

// load is the operations in use, until it is ended.
type load struct {
	t       *testing.T
	pool    *pgxpool.Pool
	ops     []operation
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	tallies []tally // by operation

	mu     sync.Mutex
	errors map[string]int
}

// newLoad has each of so many goroutines do one of the operations again and again.
func newLoad(t *testing.T, through string, goroutines int, ops []operation) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{
		t: t, pool: onePool(t, through, int32(goroutines)), ops: ops, cancel: cancel, //nolint:gosec // some hundred
		tallies: make([]tally, len(operations)), errors: map[string]int{},
	}
	for i := range goroutines {
		l.wg.Go(func() { l.repeat(ctx, i%len(ops)) })
	}
	t.Cleanup(func() {
		cancel()
		l.wg.Wait()
		l.pool.Close()
	})
	return l
}

// repeat does an operation until the load is ended. The call under way is let to its end.
func (l *load) repeat(ctx context.Context, i int) {
	for ctx.Err() == nil {
		op := l.ops[i]
		err := op.run(context.WithoutCancel(ctx), l.pool)
		l.tallies[i].count(op, err)
		if err != nil {
			l.mu.Lock()
			l.errors[err.Error()]++
			l.mu.Unlock()
			time.Sleep(10 * time.Millisecond) // while the pooler is away
		}
	}
}

// end ends the load and returns its errors, by text.
func (l *load) end() map[string]int {
	l.cancel()
	l.wg.Wait()
	return l.errors
}

// requireProgress waits until each operation has succeeded since now.
func (l *load) requireProgress(after string) {
	l.t.Helper()
	before := make([]int64, len(l.ops))
	for i := range l.ops {
		before[i] = l.tallies[i].done.Load()
	}
	for i, op := range l.ops {
		testkit.Eventually(l.t, op.name+" goes on after "+after, func() bool { return l.tallies[i].done.Load() > before[i] })
	}
}

// What lives in rows and transactions goes on behind a pooler with 200 client connections on 5 server ones. A RECONNECT, which
// replaces the server connections, fails no call. A pooler that is killed and starts again fails the calls that are under way, and
// no call that has failed has written.
func TestLoad(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"transaction":               nil,
		"server_reset_query_always": {"server_reset_query_always = 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			schemaOf(t, dsn)
			pooler := lab.StartPgBouncer(t, dsn, "transaction",
				append(settings, "default_pool_size = "+places, "max_client_conn = 250")...)
			l := newLoad(t, testkit.With(t, pooler.URL, "default_query_exec_mode", "exec"), clients, operations)
			l.requireProgress("the start")
			rounds := testkit.Brief(10, 3)
			for range rounds {
				pooler.Tell(t, "RECONNECT")
				l.requireProgress("RECONNECT")
			}
			require.Empty(t, l.end(), "a RECONNECT has failed a call")
			require.LessOrEqual(t, int(l.pool.Stat().TotalConns()), clients)
			requireCounts(t, dsn, l.tallies)
		})
	}
}

func TestLoad_Restart(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	schemaOf(t, dsn)
	pooler := lab.StartPgBouncer(t, dsn, "transaction", "default_pool_size = "+places, "max_client_conn = 250")
	l := newLoad(t, testkit.With(t, pooler.URL, "default_query_exec_mode", "exec"), clients, operations)
	l.requireProgress("the start")
	rounds := testkit.Brief(10, 3)
	for range rounds {
		pooler.Restart(t)
		l.requireProgress("the restart")
	}
	for text, n := range l.end() {
		t.Logf("%d × %s", n, text)
	}
	requireCounts(t, dsn, l.tallies)
}
