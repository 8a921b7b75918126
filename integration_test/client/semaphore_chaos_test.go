package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Connections that are cut at any moment, while many acquire, give up and release, leave nothing behind: in the end
// all permits can be had at once.
func TestSemaphore_CutAtAnyMoment(t *testing.T) {
	t.Parallel()
	const capacity, ttl = 6, 2 * time.Second
	_, dsn, admin := openSemaphore(t, capacity, ttl)
	ctx, stop := context.WithTimeout(t.Context(), testkit.Length(4*time.Second))
	defer stop()
	var wg sync.WaitGroup
	var granted, lost atomic.Int64
	semaphores := make([]*pgbaton.Semaphore, 2)
	for c := range semaphores {
		s, proxy := through(t, dsn, ttl, capacity)
		semaphores[c] = s
		wg.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(rand.N(400 * time.Millisecond)) //nolint:gosec // a test's
				proxy.Cut()
			}
		})
		for range 20 {
			wg.Go(func() {
				for ctx.Err() == nil {
					wait, cancel := context.WithTimeout(ctx, rand.N(20*time.Millisecond)) //nolint:gosec // a test's
					p, err := s.Acquire(wait, 1+rand.IntN(3))                             //nolint:gosec // a test's
					cancel()
					if err != nil {
						if !errors.Is(err, pgbaton.ErrNotAcquired) {
							t.Error(err)
						}
						continue
					}
					granted.Add(1)
					switch err := p.Release(ctx); {
					case errors.Is(err, pgbaton.ErrLost):
						lost.Add(1)
					case err != nil:
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d granted, %d of them lost", granted.Load(), lost.Load())
	var valid int
	require.NoError(t, admin.QueryRow(t.Context(), `
SELECT count(*) FROM pgbaton.slot WHERE expires_at > clock_timestamp() AND pgbaton.present(holder)`).Scan(&valid))
	t.Logf("%d slots are held by those who know nothing of it", valid)
	wait, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	p, err := semaphores[0].Acquire(wait, capacity)
	require.NoError(t, err)
	require.NoError(t, p.Release(t.Context()))
}

// A context that ends at any point of an acquire leaves nothing held, and loses no grant.
func TestSemaphore_CancelAtAnyMoment(t *testing.T) {
	t.Parallel()
	const capacity = 2
	s, dsn, _ := openSemaphore(t, capacity, 0)
	other, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), "s", capacity)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			mine := []*pgbaton.Semaphore{s, other}[i%2]
			for n := range testkit.Rounds(150) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n%50)*30*time.Microsecond)
				p, err := mine.Acquire(ctx, 1+n%capacity)
				if err == nil {
					err = p.Release(ctx)
				} else if errors.Is(err, pgbaton.ErrNotAcquired) && errors.Is(err, context.DeadlineExceeded) {
					err = nil
				}
				cancel()
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, mine := range []*pgbaton.Semaphore{s, other} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
		p, err := mine.Acquire(ctx, capacity)
		cancel()
		require.NoError(t, err)
		require.NoError(t, p.Release(t.Context()))
	}
}
