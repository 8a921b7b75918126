package semaphores

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What must work on every PostgreSQL: capacity, weights, waiting, resizing, assertion, loss, compaction, a short hammer.
func TestConformance(t *testing.T) {
	t.Parallel()
	for _, server := range lab.Servers(t) {
		t.Run(fmt.Sprint("PostgreSQL ", server.Major()), func(t *testing.T) {
			t.Parallel()
			dsn := lab.DatabaseOn(t, server)
			conform(t, dsn)
			create(t, dsn, "hammer", 3)
			workers, calls := []*worker.Process(nil), []*worker.Call(nil)
			for range 2 {
				p := worker.Start(t)
				workers = append(workers, p)
				calls = append(calls, p.Begin(worker.Command{
					Do: worker.Permits, DSN: dsn, Key: "hammer", N: 2, Goroutines: 4, For: 500 * time.Millisecond,
				}))
			}
			for _, call := range calls {
				require.Positive(t, call.Wait().Counts["granted"])
			}
			_, overlaps := judge(t, fixed(3), workers...)
			require.Empty(t, overlaps)
		})
	}
}

func conform(t *testing.T, dsn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Hang)
	defer cancel()
	control := testkit.Connect(t, dsn)
	a := create(t, testkit.Named(t, dsn, "a"), "s", 3)
	client := testclient.New(t, dsn, &pgbaton.Config{Name: "b"})
	_, err := client.Semaphore(ctx, "s", 4)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	b, err := client.Semaphore(ctx, "s", 0)
	require.NoError(t, err)

	two, err := a.Acquire(ctx, 2)
	require.NoError(t, err)
	_, err = b.TryAcquire(ctx, 2)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	one, err := b.TryAcquire(ctx, 1)
	require.NoError(t, err)
	granted := make(chan *pgbaton.Permit, 1)
	go func() {
		p, err := b.Acquire(ctx, 2)
		if err != nil {
			t.Error(err)
		}
		granted <- p
	}()
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, two.Release(ctx))
	next := <-granted
	require.Greater(t, next.Token(), two.Token())
	state, err := a.State(ctx)
	require.NoError(t, err)
	require.Len(t, state.Holders, 2)
	require.Equal(t, "b", state.Holders[0].Client)

	require.NoError(t, a.Resize(ctx, 1))
	require.NoError(t, one.Release(ctx))
	_, err = a.TryAcquire(ctx, 1)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired, "two are held, and one is allowed")
	tx, err := control.Begin(ctx)
	require.NoError(t, err)
	require.NoError(t, next.Assert(ctx, tx))
	require.NoError(t, tx.Commit(ctx))
	require.NoError(t, next.Release(ctx))

	last, err := a.Acquire(ctx, 1)
	require.NoError(t, err)
	testkit.Exec(t, control, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'a' AND datname = current_database()")
	<-last.Done()
	require.ErrorIs(t, last.Release(ctx), pgbaton.ErrLost)
	testkit.Exec(t, control, "SELECT pgbaton.open_semaphore('ballast', 2000)")
	for range 10 {
		testkit.Exec(t, control, "UPDATE pgbaton.slot SET closed = closed")
	}
	require.Positive(t, testkit.Value[int64](t, control, "SELECT pg_relation_size('pgbaton.slot') + pgbaton.compact_slots(1)::integer"))
	requireWhole(t, b, 1)
}
