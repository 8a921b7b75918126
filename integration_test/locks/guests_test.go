package locks

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Law 9: who waits for a lock holds back neither CREATE INDEX CONCURRENTLY nor VACUUM, also when it is the
// lock's holder who runs them.
func TestWaitersHoldNobodyBack(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	testkit.Exec(t, control, "CREATE TABLE guest AS SELECT g AS id FROM generate_series(1, 1000) AS g")
	holder := worker.Start(t)
	holder.Open("c", dsn, 0)
	holder.Hold("c", "k/0")
	var calls []*worker.Call
	for i := range 3 {
		p := worker.Start(t)
		name := fmt.Sprint("waiter", i)
		p.Open("c", testkit.Named(t, dsn, name), 0)
		calls = append(calls, p.Begin(worker.Command{Do: worker.Crowd, Client: "c", Key: "k", Count: 1, Goroutines: 1}))
		testkit.Eventually(t, "it waits", func() bool { return testkit.Waiting(t, control, name) > 0 })
	}
	started := time.Now()
	testkit.Exec(t, control, "CREATE INDEX CONCURRENTLY ON guest (id)")
	lab.Report(t, "CREATE INDEX CONCURRENTLY under three waiters", lab.Spread{time.Since(started)}, 4*time.Second)

	testkit.Exec(t, control, "DELETE FROM guest")
	started = time.Now()
	testkit.Eventually(t, "VACUUM removes dead rows under three waiters", func() bool {
		testkit.Exec(t, control, "VACUUM guest")
		return testkit.Value[int64](t, control, "SELECT pg_relation_size('guest')") == 0
	})
	// To give the pages back it also needs the table for itself for a moment, which autovacuum may have.
	took := time.Since(started)
	testkit.Figure(t, "VACUUM removes dead rows under three waiters: %v (target 3s)", took)
	if lab.Figures() {
		require.Less(t, took, 3*time.Second)
	}
	require.True(t, holder.Release("k/0").OK())
	for _, call := range calls {
		call.Wait()
	}
}

// Law 7: holders that need the caller's pool cannot deadlock with waiters, though it has one connection only.
func TestPoolOfOne(t *testing.T) {
	t.Parallel()
	const goroutines, rounds = 16, 10
	dsn := lab.Database(t)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(t, err)
	defer pool.Close()
	var clients []*pgbaton.Client
	for range 2 {
		client, err := pgbaton.New(context.Background(), pool, &pgbaton.Config{Engine: testclient.Engine()})
		require.NoError(t, err)
		defer func() { require.NoError(t, client.Close(context.Background())) }()
		clients = append(clients, client)
	}
	ctx, cancel := context.WithTimeout(context.Background(), lab.Hang)
	defer cancel()
	errs := make(chan error, 2*goroutines*rounds)
	var wg sync.WaitGroup
	for i := range 2 * goroutines {
		wg.Go(func() {
			for range rounds {
				errs <- clients[i%2].Do(ctx, pgbaton.Name("pool"), func(ctx context.Context, _ *pgbaton.Lock) error {
					_, err := pool.Exec(ctx, "SELECT 1")
					return err
				})
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
}
