package neighbours

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const publish = "SELECT (pgbaton.publish_waits($1, '{made up}', $2, '{f}', '{f}', '{1}', $3, '{f}', '{f}'))[1]"

func TestWaits_BelongToTheirService(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, abe, bob, operator := w.connect("ann"), w.connect("abe"), w.connect("bob"), w.connect("operator")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, bob, "SELECT pgbaton.enlist(102, 'bob')")
		id := testkit.Value[int64](t, ann, publish, 101, []int64{1}, []int64{2})
		see := func(conn *pgx.Conn) []int64 {
			return testkit.Value[[]int64](t, conn, "SELECT coalesce(array_agg(holder ORDER BY holder), '{}') FROM pgbaton.waits()")
		}
		// In the name of another session, even of one's own service; and in that of another service's holder without a session.
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(-101, 'ann, behind a pooler')")
		for _, holder := range []int{101, -101} {
			refused(t, bob, "42501", publish, holder, []int64{2}, []int64{1})
			refused(t, bob, "42501", "SELECT pgbaton.waits($1, 1000)", holder)
		}
		refused(t, abe, "42501", publish, 101, []int64{2}, []int64{1})
		require.Zero(t, testkit.Value[int](t, bob, "SELECT pgbaton.withdraw_waits(101, NULL)"))
		require.Zero(t, testkit.Value[int](t, bob, "SELECT pgbaton.withdraw_waits(101, array[$1::bigint])", id))
		testkit.Value[int64](t, bob, publish, 102, []int64{2}, []int64{1})
		require.Equal(t, []int64{101}, see(ann))
		require.Equal(t, []int64{101}, see(abe))
		require.Equal(t, []int64{102}, see(bob))
		require.Equal(t, []int64{101, 102}, see(operator))

		// Another's word about its looks is not about this one's.
		testkit.Exec(t, ann, "SELECT pgbaton.waits(101, 7)")
		require.Equal(t, int64(7), testkit.Value[int64](t, abe, "SELECT looks FROM pgbaton.waits()"))
		// A client withdraws what it has published before it lost its session, though the server has not noticed.
		require.Equal(t, 1, testkit.Value[int](t, abe, "SELECT pgbaton.withdraw_waits(101, NULL)"))
		require.Empty(t, see(ann))
	})
}

// A cycle that another service has made up ends nobody's wait, also when that service swears to it again and again.
func TestWaits_MadeUpCycle(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ctx := context.Background()
		holder, waiter := client(t, w.url("abe")), client(t, w.url("ann"))
		wanted, err := holder.Acquire(ctx, pgbaton.ID(2))
		require.NoError(t, err)
		held, err := waiter.Acquire(ctx, pgbaton.ID(1))
		require.NoError(t, err)

		bob := w.connect("bob")
		testkit.Exec(t, bob, "SELECT pgbaton.enlist(102, 'bob')")
		// The youngest wait of a cycle is to end: so the one that lies is the older one.
		testkit.Value[int64](t, bob, publish, 102, []int64{1}, []int64{2})
		within, cancel := context.WithTimeout(held.Context(), 6*time.Second)
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			_, err := waiter.Acquire(within, pgbaton.ID(2))
			ended <- err
		}()
		for look := 1; ; look++ {
			select {
			case err := <-ended:
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, err, pgbaton.ErrDeadlock)
				require.NoError(t, wanted.Release(ctx))
				require.NoError(t, held.Release(ctx))
				return
			case <-time.After(50 * time.Millisecond):
				testkit.Exec(t, bob, "SELECT FROM pgbaton.waits(102, $1)", look)
			}
		}
	})
}

func client(t *testing.T, dsn string) *pgbaton.Client {
	t.Helper()
	c, err := pgbaton.Open(context.Background(), dsn, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close(context.Background())) })
	return c
}
