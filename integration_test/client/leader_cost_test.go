package client

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A hundred candidates cost their client two statements a second and two connections, signs of life included, and
// leading costs less.
func TestLead_Cost(t *testing.T) {
	t.Parallel()
	const candidates = 100
	watched := testkit.Length(15 * time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	dsn := testkit.Migrated(t)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	counters := map[string]*testkit.Counter{}
	for _, what := range []string{"leading", "campaigning"} { // the first is elected
		pool, counter := testkit.Counted(t, dsn)
		counters[what] = counter
		client, err := pgbaton.New(ctx, pool, &pgbaton.Config{TTL: testkit.Patience})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close(context.Background())) })
		var elected sync.WaitGroup
		elected.Add(candidates)
		for i := range candidates {
			running.Go(func() {
				_ = client.Lead(ctx, fmt.Sprint("cost/", i), func(ctx context.Context, _ *pgbaton.Lock) error {
					elected.Done()
					<-ctx.Done()
					return nil
				})
			})
		}
		if what == "leading" {
			elected.Wait()
		}
	}
	for what, counter := range counters {
		for end := time.Now().Add(2 * testkit.Patience); ; { // until it has found its pace
			began, before := time.Now(), counter.Statements()
			time.Sleep(watched)
			statements, elapsed := counter.Statements()-before, time.Since(began)
			if statements > 0 && float64(statements) <= 2*elapsed.Seconds()+2 { // and a round that was cut in two
				testkit.Figure(t, "%s in %d names: %.2f statements a second, %d connections", what, candidates,
					float64(statements)/elapsed.Seconds(), counter.Connections())
				break
			}
			require.True(t, time.Now().Before(end), "%s: %d statements in %v", what, statements, elapsed)
		}
		require.LessOrEqual(t, counter.Connections(), int64(3), "one of them for the probe at the start")
	}
}
