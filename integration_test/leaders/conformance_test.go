package leaders

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
)

// What must work on every PostgreSQL: one leads and resigns when it is asked to, and a job runs once.
func TestConformance(t *testing.T) {
	for _, server := range lab.Servers(t) {
		t.Run(fmt.Sprint("PostgreSQL ", server.Major()), func(t *testing.T) {
			dsn := lab.DatabaseOn(t, server)
			clients := []*pgbaton.Client{lab.Client(t, dsn, nil), lab.Client(t, dsn, nil)}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			terms := make(chan pgbaton.Token, 10)
			var campaigns sync.WaitGroup
			for _, client := range clients {
				campaigns.Go(func() {
					err := client.Lead(ctx, "x", func(ctx context.Context, term *pgbaton.Lock) error {
						terms <- term.Token()
						<-ctx.Done()
						return nil
					})
					if err == nil {
						t.Error("Lead returned nil")
					}
				})
			}
			first := <-terms
			lab.Eventually(t, 10*time.Second, "the request is accepted", func() bool {
				info, err := clients[0].Leader(ctx, "x")
				return err == nil && info.Term == first && clients[0].RequestResign(ctx, "x") == nil
			})
			require.Greater(t, <-terms, first)
			cancel()
			campaigns.Wait()

			for round := range 2 {
				ran := 0
				for _, client := range clients {
					err := client.Once(t.Context(), "job", 400*time.Millisecond,
						func(context.Context, *pgbaton.Lock) error { ran++; return nil })
					if err != nil {
						require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
					}
				}
				require.Equal(t, 1, ran, "round %d", round)
				time.Sleep(450 * time.Millisecond)
			}
		})
	}
}
