package backoff_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/backoff"
)

func TestWait(t *testing.T) {
	t.Parallel()
	t.Run("StaysWithinBound", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			for attempt := 1; attempt < 100; attempt++ {
				start := time.Now()
				require.NoError(t, backoff.Wait(t.Context(), attempt))
				require.Less(t, time.Since(start), backoff.Bound(attempt))
			}
		})
		require.Equal(t, 4*time.Millisecond, backoff.Bound(1))
		require.Equal(t, 8*time.Millisecond, backoff.Bound(2))
		require.Equal(t, 250*time.Millisecond, backoff.Bound(1000))
	})
	t.Run("EndsWithContext", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, backoff.Wait(ctx, 1000), context.Canceled)
	})
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	var r backoff.Reconnect
	for range 2 {
		for _, about := range []time.Duration{20, 40, 80, 160, 320, 640, 1280, 2000, 2000} {
			pause := r.Pause()
			require.GreaterOrEqual(t, pause, about*time.Millisecond/2)
			require.Less(t, pause, about*time.Millisecond*3/2)
		}
		for range 100 {
			require.Less(t, r.Pause(), 3*time.Second, "however often it fails")
		}
		r.Connected()
	}
	require.Less(t, backoff.Soon(), 30*time.Millisecond)
	require.Zero(t, backoff.About(0))
}
