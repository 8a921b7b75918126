package poolers

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// figureRounds is how many pairs make a measurement.
func figureRounds() int {
	if lab.Figures() {
		return 2000
	}
	return 50
}

// leaseClient opens a client whose locks are leases, and that closes with the test. What it records is what later clients follow.
func leaseClient(t *testing.T, dsn string) *pgbaton.Client {
	t.Helper()
	client, err := pgbaton.Open(t.Context(), dsn, &pgbaton.Config{Engine: pgbaton.EngineLease, TTL: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close(context.Background()) })
	return client
}

// TestFigures is figure P11: what leases cost through PgBouncer in transaction mode. A pair is an Acquire and a Release; a bare pair is
// two UPDATEs of one row through the same pooler. The measurements take turns, so that a change of the machine meets all.
func TestFigures(t *testing.T) {
	dsn := lab.Database(t)
	through := lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 20")
	client, bare := leaseClient(t, through), barePair(t, through)
	pair := func(key int) func(int) {
		return func(int) {
			lock, err := client.Acquire(context.Background(), pgbaton.Name(fmt.Sprint("figure/", key)))
			if err == nil {
				err = lock.Release(context.Background())
			}
			if err != nil {
				t.Error(err)
			}
		}
	}
	const blocks, goroutines = 5, 100
	rounds := figureRounds()
	var bares, pairs, crowds []int64 // nanoseconds for a pair
	for range blocks {
		bares = append(bares, timed(rounds, bare))
		pairs = append(pairs, timed(rounds, pair(0)))
		began := time.Now()
		var group sync.WaitGroup
		for i := range goroutines {
			group.Go(func() { timed(rounds/10, pair(1+i)) })
		}
		group.Wait()
		crowds = append(crowds, int64(time.Since(began))/int64(goroutines*(rounds/10)))
	}
	b, p, c := lab.NewSpread(bares).At(50), lab.NewSpread(pairs).At(50), lab.NewSpread(crowds).At(50)
	testkit.Figure(t, "P11: through PgBouncer: bare pair %v; pair %v, ratio %.2f (target 1.30); 100 goroutines on keys of their own %.1f × the rate of bare pairs (target 5)",
		b, p, float64(p)/float64(b), float64(b)/float64(c))
}

// timed returns how long a func takes on average.
func timed(rounds int, f func(int)) int64 {
	began := time.Now()
	for i := range rounds {
		f(i)
	}
	return int64(time.Since(began)) / int64(rounds)
}

// barePair claims and frees a row on one connection.
func barePair(t *testing.T, through string) func(int) {
	t.Helper()
	conn := testkit.Connect(t, testkit.With(t, through, "default_query_exec_mode", "exec"))
	testkit.Exec(t, conn, `CREATE TABLE bare (key bigint PRIMARY KEY, holder uuid, token bigint, expires_at timestamptz) WITH (fillfactor = 50);
		INSERT INTO bare VALUES (1)`)
	holder := "11111111-1111-1111-1111-111111111111" // text: without a prepared statement the type is not known
	return func(int) {
		ctx := context.Background()
		var token int64
		err := conn.QueryRow(ctx, `UPDATE bare SET holder = $2::uuid, token = coalesce(token, 0) + 1, expires_at = clock_timestamp() + interval '15 s'
			WHERE key = $1 AND (holder IS NULL OR expires_at < clock_timestamp()) RETURNING token`, int64(1), holder).Scan(&token)
		if err == nil {
			_, err = conn.Exec(ctx, "UPDATE bare SET holder = NULL WHERE key = $1 AND holder = $2::uuid AND token = $3", int64(1), holder, token)
		}
		require.NoError(t, err)
	}
}

// TestFigures_HandOver is the other half of P11: a lease goes back and forth between two processes.
func TestFigures_HandOver(t *testing.T) {
	for name, target := range map[string]string{"through PgBouncer": "150 ms, 400 ms", "direct": "5 ms"} {
		t.Run(name, func(t *testing.T) {
			dsn := lab.Database(t)
			if name != "direct" {
				dsn = lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 20")
			}
			first, err := leaseClient(t, dsn).Acquire(t.Context(), pgbaton.Name("relay")) // until both wait
			require.NoError(t, err)
			var grants []*history.Grant
			var calls []*worker.Call
			var processes []*worker.Process
			for range 2 {
				p := worker.Start(t)
				p.Open("c", dsn, time.Minute)
				calls = append(calls, p.Begin(worker.Command{
					Do: worker.Relay, Client: "c", Key: "relay", Count: figureRounds() / 10, Hold: 5 * time.Millisecond,
				}))
				testkit.Eventually(t, "the process has called", func() bool {
					_, counts := p.History()
					return counts.Tried > 0
				})
				processes = append(processes, p)
			}
			require.NoError(t, first.Release(t.Context()))
			for i, call := range calls {
				call.Wait()
				more, _ := processes[i].History()
				grants = append(grants, more...)
			}
			require.NoError(t, history.Tokens(grants))
			testkit.Figure(t, "P11: hand-over between processes, %s: %v (target %s)", name, lab.NewSpread(history.HandOvers(grants)), target)
		})
	}
}
