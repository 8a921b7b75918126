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
