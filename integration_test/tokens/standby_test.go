package tokens_test

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A standby that lags is promoted while the old primary lives on, and may have crashed and been repaired before.
func TestTokens_Promotion(t *testing.T) {
	t.Parallel()
	for name, crashes := range map[string]int{"Lagging": 0, "LaggingSinceBeforeACrash": 1, "LaggingSinceBeforeThree": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			everyMajor(t, func(t *testing.T, bindir string) {
				var h history
				primary, standby := promote(t, bindir, none, crashes, &h)
				h.draw(t, testkit.Connect(t, standby), 1)
				twoHolders(t, primary, standby, &h)
				h.grant(t, standby)
				h.require(t, none)
			})
		})
	}
}

func TestTokens_PromotionOfMutants(t *testing.T) {
	t.Parallel()
	bindir := withPrograms(t, "initdb")
	for name, c := range map[string]struct {
		mutant  string
		crashes int
	}{
		"BareNextval":        {bareNextval, 0},
		"NoIncarnationCheck": {noCheck, 0},
		"RunsAheadOfClock":   {wideGap, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var h history
			_, standby := promote(t, bindir, c.mutant, c.crashes, &h)
			h.draw(t, testkit.Connect(t, standby), 1)
			h.require(t, c.mutant)
		})
	}
}

// promote draws from a primary that its standby does not hear of, and promotes the standby.
func promote(t *testing.T, bindir, mutant string, crashes int, h *history) (primary, standby string) {
	t.Helper()
	server := start(t, bindir, mutant, "wal_keep_size", "256MB")
	conn := testkit.Connect(t, server.URL())
	r := lab.StandbyOf(t, server, conn)
	standby = r.Start(t)
	_, err := pgbaton.Open(t.Context(), standby, nil)
	require.ErrorIs(t, err, pgbaton.ErrStandby)
	require.ErrorContains(t, err, "Connect to the primary")
	h.draw(t, conn, 3)
	testkit.WaitFor(t, conn, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_flush_lsn())")

	sender := testkit.Value[int32](t, conn, "SELECT pid FROM pg_stat_replication")
	testkit.Exec(t, conn, "ALTER ROLE replica NOLOGIN") // no other sender after this one
	testkit.WaitFor(t, conn, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn >= pg_current_wal_flush_lsn())")
	require.NoError(t, syscall.Kill(int(sender), syscall.SIGSTOP))
	thaw := func() { _ = syscall.Kill(int(sender), syscall.SIGCONT) }
	t.Cleanup(thaw)
	h.draw(t, conn, 100)
	h.grant(t, server.URL())
	for victim := int(sender); crashes > 0; crashes-- {
		require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
		_, err := conn.Exec(t.Context(), "SELECT pg_sleep(60)")
		require.Error(t, err)
		waitUp(t, server.URL())
		h.grant(t, server.URL())
		conn = testkit.Connect(t, server.URL())
		h.draw(t, conn, 100)
		victim = pidOf(testkit.Connect(t, server.URL()))
	}
	lab.PgCtl(t, server, r.Data, "promote")
	return server.URL(), standby
}

// twoHolders holds a key on the old primary and on the new one at the same time. On the new primary, the old
// holder's writes are refused from the first write of the new holder on.
func twoHolders(t *testing.T, primary, standby string, h *history) {
	t.Helper()
	ctx := t.Context()
	oldClient, newClient := open(t, primary), open(t, standby)
	pool := testkit.Pool(t, standby)
	write := func(lock *pgbaton.Lock, resource string) error {
		return pgbaton.InTx(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
			if resource != "" {
				return pgbaton.Fence(ctx, tx, resource, lock.Token())
			}
			return lock.Assert(ctx, tx)
		})
	}
	const keys, writes = 3, 10
	var refused int
	for i := range keys {
		key := pgbaton.Name(fmt.Sprintf("account/%d", i))
		old, err := oldClient.Acquire(ctx, key)
		require.NoError(t, err)
		require.NoError(t, write(old, ""), "nobody else has written yet")
		held, err := newClient.Acquire(ctx, key)
		require.NoError(t, err)
		h.add("new primary", int64(held.Token()))
		require.Greater(t, held.Token(), old.Token())
		for _, resource := range []string{"", "ledger"} {
			require.NoError(t, write(held, resource))
			for range writes {
				require.ErrorIs(t, write(old, resource), pgbaton.ErrStaleToken)
				refused++
			}
		}
		// Whoever follows on the old primary is too old as well.
		require.NoError(t, old.Release(ctx))
		next, err := oldClient.Acquire(ctx, key)
		require.NoError(t, err)
		require.ErrorIs(t, write(next, ""), pgbaton.ErrStaleToken)
		require.NoError(t, write(held, ""))
		require.NoError(t, next.Release(ctx))
		require.NoError(t, held.Release(ctx))
	}
	t.Logf("%d stale writes, all refused", refused+keys)
}

func open(t *testing.T, dsn string) *pgbaton.Client {
	t.Helper()
	client, err := pgbaton.Open(t.Context(), dsn, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close(context.Background()) })
	return client
}
