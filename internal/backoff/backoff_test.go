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

func TestRedial(t *testing.T) {
	t.Parallel()
	var r backoff.Redial
	within := func(around time.Duration) {
		t.Helper()
		for range 100 {
			pause := backoff.Jittered(around)
			require.GreaterOrEqual(t, pause, around/2)
			require.Less(t, pause, around/2+around)
		}
		pause := r.Failed()
		require.GreaterOrEqual(t, pause, around/2)
		require.Less(t, pause, around/2+around)
	}
	for _, around := range []time.Duration{20, 40, 80, 160, 320, 640, 1280, 2000, 2000} {
		within(around * time.Millisecond)
	}
	for range 1000 {
		r.Failed()
	}
	within(2 * time.Second)
	r.Opened()
	within(20 * time.Millisecond)
}
