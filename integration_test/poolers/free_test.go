package poolers

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Behind a pooler no client hears a notification, nor has a session that could be ended. One that is alive looks for what operators ask
// for; what another has is no longer renewed.
func TestFree(t *testing.T) {
	dsn := lab.Database(t)
	through := testkit.With(t, lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 5"), "default_query_exec_mode", "exec")
	ctx := testkit.Context(t)
	open := func(name string, ttl time.Duration, maxConns int) *pgbaton.Client {
		return testclient.New(t, through, &pgbaton.Config{Name: name, TTL: ttl, MaxConns: maxConns})
	}
	operator := open("operator", 0, 0)
	held := func(f *pgbaton.LockFilter) (l pgbaton.LockInfo) {
		testkit.Eventually(t, "it is listed", func() bool {
			found, err := operator.Locks(ctx, f)
			require.NoError(t, err)
			if len(found) == 1 && found[0].Token != 0 {
				l = found[0]
			}
			return l.Token != 0
		})
		require.Zero(t, l.Session)
		return l
	}
	// free frees, and again while a slow machine does not answer in time.
	free := func(l pgbaton.LockInfo) {
		testkit.Eventually(t, "it is freed", func() bool {
			freed, err := operator.Free(ctx, l, &pgbaton.FreeOpts{Reason: "stuck"})
			if err != nil {
				require.ErrorIs(t, err, context.DeadlineExceeded)
			}
			return len(freed) == 1
		})
	}

	holder := open("holder", 0, 0)
	lock, err := holder.Acquire(ctx, pgbaton.Name("freed"))
	require.NoError(t, err)
	other, err := holder.Acquire(ctx, pgbaton.Name("kept"))
	require.NoError(t, err)
	sem, err := holder.Semaphore(ctx, "freed", 2)
	require.NoError(t, err)
	permit, err := sem.Acquire(ctx, 1)
	require.NoError(t, err)
	host, err := os.Hostname()
	require.NoError(t, err)
	testkit.Eventually(t, "it is listed where the holder runs", func() bool {
		l := held(&pgbaton.LockFilter{Key: lock.Key()})
		return l.Client == "holder" && l.Host == host && l.Process == os.Getpid()
	})
	l := held(&pgbaton.LockFilter{Key: lock.Key()})
	would, err := operator.Free(ctx, l, &pgbaton.FreeOpts{DryRun: true, EndSession: true})
	require.NoError(t, err)
	require.Len(t, would, 1, "there is no session with which the other would go")
	free(l)
	<-lock.Done()
	require.Equal(t, "freed by an operator", pgbaton.LossReasonOf(lock.Err()))
	free(held(&pgbaton.LockFilter{Kind: "permit", Name: "freed"}))
	<-permit.Done()
	require.Equal(t, "freed by an operator", pgbaton.LossReasonOf(permit.Err()))
	require.NoError(t, other.Release(ctx))

	// With so few connections a client has none to look with.
	deaf := open("deaf", 15*time.Second, 2)
	lock, err = deaf.Acquire(ctx, pgbaton.Name("lapses"))
	require.NoError(t, err)
	l = held(&pgbaton.LockFilter{Key: lock.Key()})
	_, err = operator.Free(ctx, l, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	freed, err := operator.Free(ctx, l, &pgbaton.FreeOpts{EndSession: true})
	require.NoError(t, err)
	require.Len(t, freed, 1)
	<-lock.Done()
	next, err := operator.Acquire(ctx, lock.Key())
	require.NoError(t, err)
	require.Greater(t, next.Token(), lock.Token())
	require.NoError(t, next.Release(ctx))
}
