package client

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Old code and new code, which wants another capacity, run side by side: pods of both come and go, none fails, and what
// the newest wants counts.
func TestSemaphoreRevision(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	ctx := testkit.Context(t)
	clients := []*pgbaton.Client{testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)}
	capacity := func() int {
		s, err := clients[0].Semaphore(ctx, "s", 0)
		require.NoError(t, err)
		has, err := testclient.Capacity(ctx, s)
		require.NoError(t, err)
		return has
	}
	_, err := clients[0].Semaphore(ctx, "s", 8, &pgbaton.SemaphoreOpts{Revision: -1})
	require.ErrorContains(t, err, "the least is 1")
	_, err = clients[0].Semaphore(ctx, "s", 0, &pgbaton.SemaphoreOpts{Revision: 1})
	require.ErrorContains(t, err, "has no capacity")

	oldest, err := clients[0].Semaphore(ctx, "s", 8) // before anybody counted
	require.NoError(t, err)
	_, err = clients[1].Semaphore(ctx, "s", 9)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	for revision, wanted := range []int{1: 12, 2: 3, 3: 5} { // up, down, up
		if revision == 0 {
			continue
		}
		var group sync.WaitGroup
		for range 4 {
			for i, client := range clients {
				group.Go(func() { // restarted pods of before, and new ones
					_, err := client.Semaphore(ctx, "s", 8)
					if revision == 1 && errors.Is(err, pgbaton.ErrCapacityMismatch) {
						err = nil // it came first, or last
					}
					if err == nil && i == 1 {
						_, err = client.Semaphore(ctx, "s", wanted, &pgbaton.SemaphoreOpts{Revision: revision})
					}
					if err == nil && revision > 1 {
						_, err = client.Semaphore(ctx, "s", 12, &pgbaton.SemaphoreOpts{Revision: 1})
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		}
		group.Wait()
		require.Equal(t, wanted, capacity())
		p, err := oldest.Acquire(ctx, wanted) // old code goes on with it
		require.NoError(t, err)
		_, err = oldest.TryAcquire(ctx, 1)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.NoError(t, p.Release(ctx))
	}

	// Two changes with one number are found; a Resize by hand lasts until the next change.
	_, err = clients[0].Semaphore(ctx, "s", 6, &pgbaton.SemaphoreOpts{Revision: 3})
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	require.ErrorContains(t, err, "revision 3 came with 5")
	require.NoError(t, oldest.Resize(ctx, 7))
	_, err = clients[0].Semaphore(ctx, "s", 5, &pgbaton.SemaphoreOpts{Revision: 3})
	require.NoError(t, err)
	require.Equal(t, 7, capacity())
	_, err = clients[0].Semaphore(ctx, "s", 4, &pgbaton.SemaphoreOpts{Revision: 4})
	require.NoError(t, err)
	require.Equal(t, 4, capacity())
}

// A client that is closed leaves no row of a holder.
func TestSemaphore_CloseForgetsTheHolder(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for range 3 {
		client, err := pgbaton.Open(t.Context(), dsn, nil)
		require.NoError(t, err)
		s, err := client.Semaphore(t.Context(), "s", 8)
		require.NoError(t, err)
		_, err = s.Acquire(t.Context(), 3)
		require.NoError(t, err)
		require.NoError(t, client.Close(context.Background()))
	}
	admin := testkit.Connect(t, dsn)
	require.Zero(t, testkit.Value[int](t, admin, "SELECT count(*) FROM pgbaton.holder"))
	require.Zero(t, testkit.Value[int](t, admin, "SELECT count(*) FROM pgbaton.slot WHERE holder IS NOT NULL"))
}
