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
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What must work on every PostgreSQL: one leads and resigns when it is asked to, and a job runs once.
func TestConformance(t *testing.T) {
	t.Parallel()
	for _, server := range lab.Servers(t) {
		t.Run(fmt.Sprint("PostgreSQL ", server.Major()), func(t *testing.T) {
			t.Parallel()
			dsn := lab.DatabaseOn(t, server)
			clients := []*pgbaton.Client{testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)}
			ctx, cancel := context.WithTimeout(t.Context(), lab.Hang)
			defer cancel()
			terms := make(chan pgbaton.Token, 10)
			var candidates sync.WaitGroup
			for _, client := range clients {
				candidates.Go(func() {
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
			testkit.Eventually(t, "the request is accepted", func() bool {
				info, err := clients[0].Leader(ctx, "x")
				return err == nil && info.Token == first && clients[0].RequestResign(ctx, "x") == nil
			})
			require.Greater(t, <-terms, first)
			cancel()
			candidates.Wait()

			const window = 400 * time.Millisecond
			ran := map[string]int{}
			once := func(client *pgbaton.Client, job string, window time.Duration) {
				err := client.Once(t.Context(), job, window,
					func(context.Context, *pgbaton.Lock) error { ran[job]++; return nil })
				if err != nil {
					require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				}
			}
			for _, client := range clients {
				once(client, "hourly", time.Hour)
				once(client, "often", window)
				time.Sleep(window + window/8) // the first run was in a window of its own
			}
			require.Equal(t, map[string]int{"hourly": 1, "often": 2}, ran)
		})
	}
}
