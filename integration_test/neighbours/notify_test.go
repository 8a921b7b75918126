package neighbours

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Everybody may notify: who is not asked by its row to resign does not.
func TestLead_MadeUpNotification(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		leader, asker := client(t, w.url("ann")), client(t, w.url("abe"))
		ctx, cancel := context.WithCancel(context.Background())
		terms, ends, done := make(chan pgbaton.Token), make(chan error), make(chan error, 1)
		go func() {
			done <- leader.Lead(ctx, "scheduler", func(ctx context.Context, term *pgbaton.Lock) error {
				terms <- term.Token()
				<-ctx.Done()
				ends <- context.Cause(ctx)
				return nil
			})
		}()
		term := <-terms
		require.Eventually(t, func() bool {
			_, err := asker.Leader(ctx, "scheduler")
			return err == nil
		}, lab.Hang, 10*time.Millisecond)

		guest := w.connect("guest")
		for range 20 {
			testkit.Exec(t, guest, "SELECT pg_notify('pgbaton', $1)", fmt.Sprintf("leader/resign/%d/scheduler", term))
			select {
			case cause := <-ends:
				require.Fail(t, "it resigned", cause)
			case <-time.After(50 * time.Millisecond):
			}
		}
		require.ErrorIs(t, client(t, w.url("bob")).RequestResign(ctx, "scheduler"), pgbaton.ErrNotFound)
		require.NoError(t, asker.RequestResign(ctx, "scheduler"))
		require.ErrorIs(t, <-ends, pgbaton.ErrResigned)
		cancel()
		select {
		case <-terms: // another term began before
			require.Error(t, <-ends)
			require.Error(t, <-done)
		case err := <-done:
			require.Error(t, err)
		}
	})
}
