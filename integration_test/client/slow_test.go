package client

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// On a network whose round trip is a good part of the TTL a client opens, works, and comes back after a loss.
func TestNew_OnASlowNetwork(t *testing.T) {
	t.Parallel()
	for roundTrip, ttl := range map[time.Duration]time.Duration{
		200 * time.Millisecond: 4 * time.Second, 400 * time.Millisecond: 8 * time.Second, 600 * time.Millisecond: 9 * time.Second,
	} {
		t.Run(roundTrip.String(), func(t *testing.T) {
			t.Parallel()
			ctx := testkit.Context(t)
			dsn := testkit.Named(t, testkit.Migrated(t), "slow")
			config, err := pgxpool.ParseConfig(dsn)
			require.NoError(t, err)
			config.ConnConfig.DialFunc = testkit.Slow(roundTrip)
			pool, err := pgxpool.NewWithConfig(ctx, config)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			client, err := pgbaton.New(ctx, pool, &pgbaton.Config{TTL: ttl})
			require.NoError(t, err)
			t.Cleanup(func() { _ = client.Close(context.Background()) })

			rounds := 2 // the second one after a loss
			if roundTrip > 200*time.Millisecond {
				rounds = testkit.Brief(2, 1)
			}
			for range rounds {
				lock, err := client.Acquire(ctx, pgbaton.Name("slow"))
				require.NoError(t, err)
				sem, err := client.Semaphore(ctx, "slow", 2)
				require.NoError(t, err)
				permit, err := sem.Acquire(ctx, 1)
				require.NoError(t, err)
				held := time.Now()
				for time.Since(held) < 3*ttl/2 { // renewals and signs of life
					time.Sleep(ttl / 10)
					require.NoError(t, lock.Err())
					require.NoError(t, permit.Err())
				}
				require.NoError(t, permit.Release(ctx))
				require.NoError(t, lock.Release(ctx))
				testkit.Run(t, dsn, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND application_name = 'slow' AND datname = current_database() AND pid <> pg_backend_pid()`)
			}
		})
	}
}
