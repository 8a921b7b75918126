package locks

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What must work on every PostgreSQL: sets of keys, shared locks, a deadlock between clients.
func TestConformance_Sets(t *testing.T) {
	t.Parallel()
	for _, server := range lab.Servers(t) {
		t.Run(fmt.Sprint("PostgreSQL ", server.Major()), func(t *testing.T) {
			t.Parallel()
			dsn := lab.DatabaseOn(t, server)
			a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
			ctx, cancel := context.WithTimeout(t.Context(), lab.Hang)
			defer cancel()
			keys := []pgbaton.Key{pgbaton.Name("x"), pgbaton.ID(7), pgbaton.Pair(1, 2)}
			set, err := a.AcquireAll(ctx, keys...)
			require.NoError(t, err)
			_, err = b.TryAcquireAll(ctx, keys[2], pgbaton.Name("y"))
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			require.NoError(t, set.Release(ctx))

			for _, key := range keys {
				lock, err := a.AcquireShared(ctx, key)
				require.NoError(t, err)
				shared, err := b.TryAcquireShared(ctx, key)
				require.NoError(t, err)
				_, err = b.TryAcquire(ctx, key)
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				require.NoError(t, lock.Release(ctx))
				require.NoError(t, shared.Release(ctx))
			}

			one, err := a.Acquire(ctx, keys[0])
			require.NoError(t, err)
			other, err := b.Acquire(ctx, keys[1])
			require.NoError(t, err)
			ends := make(chan error, 2)
			cross := func(c *pgbaton.Client, held *pgbaton.Lock, key pgbaton.Key) {
				lock, err := c.Acquire(held.Context(), key)
				if err == nil {
					err = lock.Release(ctx)
				}
				ends <- errors.Join(err, held.Release(ctx))
			}
			go cross(a, one, keys[1])
			go cross(b, other, keys[0])
			victim, survivor := <-ends, <-ends
			if victim == nil { // its release let the other go on, which was sooner back
				victim, survivor = survivor, victim
			}
			require.ErrorIs(t, victim, pgbaton.ErrDeadlock)
			require.NoError(t, survivor)
		})
	}
}
