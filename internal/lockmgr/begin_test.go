package lockmgr

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func TestPending(t *testing.T) {
	t.Parallel()
	const long = time.Second
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.held(key, exclusive)
		ctx, cancel := context.WithCancel(t.Context())
		waits, gives := w.begin(t, ctx), w.begin(t, ctx)
		start := time.Now()
		time.Sleep(long / 4)
		require.False(t, waits.Within(ctx, long))
		require.Equal(t, long, time.Since(start), "from its beginning")

		w.release(first)
		w.rounds()
		require.True(t, waits.Within(ctx, 0))
		require.True(t, waits.Within(ctx, long), "again")
		second, err := waits.Wait(ctx)
		require.NoError(t, err)

		time.AfterFunc(long, cancel)
		require.True(t, gives.Within(ctx, 10*long), "the context has ended")
		_, err = gives.Wait(ctx)
		require.ErrorIs(t, err, lockerr.NotAcquired)
		require.ErrorIs(t, err, context.Canceled)

		third := w.begin(t, t.Context())
		done := make(chan struct{})
		time.AfterFunc(long, func() {
			defer close(done)
			w.release(second)
			w.rounds()
		})
		require.True(t, third.Within(t.Context(), 10*long), "it is granted meanwhile")
		<-done
		hold, err := third.Wait(t.Context())
		require.NoError(t, err)
		w.release(hold)
		w.empty()
	})
}

func (w *world) begin(t *testing.T, ctx context.Context) Pending { //nolint:revive // as the other helpers
	t.Helper()
	r, err := w.Begin(ctx, nameless(key)[0], exclusive, false)
	require.NoError(t, err)
	return r
}
