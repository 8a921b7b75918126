package pgbaton_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// A hundred campaigns cost their client two statements a second and two connections, signs of life included, and
// leading costs less.
func TestLead_Cost(t *testing.T) {
	t.Parallel()
	const (
		campaigns = 100
		watched   = 15 * time.Second
	)
	ctx, cancel := context.WithCancel(t.Context())
	dsn := dbtest.Migrated(t)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	counters := map[string]*dbtest.Counter{}
	for _, what := range []string{"leading", "campaigning"} { // the first is elected
		pool, counter := dbtest.Counted(t, dsn)
		counters[what] = counter
		client, err := pgbaton.New(ctx, pool, nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, client.Close(context.Background())) })
		var elected sync.WaitGroup
		elected.Add(campaigns)
		for i := range campaigns {
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
	time.Sleep(2 * time.Second) // both have found their pace
	before := map[string]int64{}
	for what, counter := range counters {
		before[what] = counter.Statements()
	}
	time.Sleep(watched)
	for what, counter := range counters {
		statements := counter.Statements() - before[what]
		t.Logf("%s in %d names: %.2f statements a second, %d connections", what, campaigns,
			float64(statements)/watched.Seconds(), counter.Connections())
		require.Positive(t, statements)
		require.LessOrEqual(t, statements, int64(2*watched/time.Second+2), "and a round that was cut in two")
		require.LessOrEqual(t, counter.Connections(), int64(3), "one of them for the probe at the start")
	}
}
