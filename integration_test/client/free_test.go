package client

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

const freedByOperator = "freed by an operator"

func TestFree(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	a, b := testclient.New(t, dsn, steady("anna")), testclient.New(t, dsn, steady("bert"))
	ctx := testkit.Context(t)
	find := func(t *testing.T, f *pgbaton.LockFilter) pgbaton.LockInfo {
		t.Helper()
		return listed(t, b, f, "it", func(all []pgbaton.LockInfo) bool {
			return len(all) > 0 && all[0].State == "held" && all[0].Token != 0
		})[0]
	}
	// free frees, and again while a machine that stands still does not answer in time.
	free := func(t *testing.T, held pgbaton.LockInfo, opts *pgbaton.FreeOpts) []pgbaton.LockInfo {
		t.Helper()
		for {
			freed, err := b.Free(ctx, held, opts)
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				continue
			}
			require.NoError(t, err)
			return freed
		}
	}

	t.Run("OneOfMany", func(t *testing.T) {
		t.Parallel()
		locks := make([]*pgbaton.Lock, 100)
		for i := range locks {
			var err error
			locks[i], err = a.Acquire(ctx, pgbaton.Name(fmt.Sprint("free/", i)))
			require.NoError(t, err)
		}
		tokens := make([]pgbaton.Token, len(locks))
		for i, lock := range locks {
			tokens[i] = lock.Token()
		}
		held := find(t, &pgbaton.LockFilter{Key: locks[42].Key()})
		would, err := b.Free(ctx, held, &pgbaton.FreeOpts{DryRun: true})
		require.NoError(t, err)
		require.Len(t, would, 1)
		would, err = b.Free(ctx, held, &pgbaton.FreeOpts{DryRun: true, EndSession: true})
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(would), 100)
		require.Equal(t, held.Key, would[0].Key)
		require.NoError(t, locks[42].Err())

		freed := free(t, held, &pgbaton.FreeOpts{Reason: "stuck since noon"})
		require.Len(t, freed, 1)
		require.Equal(t, locks[42].Key(), freed[0].Key)
		<-locks[42].Done()
		require.Equal(t, freedByOperator, pgbaton.LossReasonOf(locks[42].Err()))
		require.ErrorContains(t, locks[42].Err(), "stuck since noon")
		lock, err := b.Acquire(ctx, locks[42].Key())
		require.NoError(t, err)
		require.Greater(t, lock.Token(), tokens[42])
		require.NoError(t, lock.Release(ctx))
		require.ErrorIs(t, locks[42].Release(ctx), pgbaton.ErrLost)
		for i, lock := range locks {
			if i != 42 {
				require.Equal(t, tokens[i], lock.Token())
				require.NoError(t, lock.Release(ctx))
			}
		}
		require.Equal(t, "anna free/42 freed stuck since noon", testkit.Value[string](t, conn,
			"SELECT concat_ws(' ', client, name, outcome, reason) FROM pgbaton.freeing WHERE name = 'free/42' AND outcome = 'freed'"))
		_, err = b.Free(ctx, held, nil)
		require.ErrorIs(t, err, pgbaton.ErrNotFound)
	})
	t.Run("APermit", func(t *testing.T) {
		t.Parallel()
		sem, err := a.Semaphore(ctx, "free/sem", 3)
		require.NoError(t, err)
		one, err := sem.Acquire(ctx, 1)
		require.NoError(t, err)
		two, err := sem.Acquire(ctx, 2)
		require.NoError(t, err)
		all := listed(t, b, &pgbaton.LockFilter{Kind: "permit", Name: "free/sem"}, "both", func(all []pgbaton.LockInfo) bool { return len(all) == 2 })
		for _, held := range all {
			if held.Permits == 2 {
				free(t, held, nil)
			}
		}
		<-two.Done()
		require.Equal(t, freedByOperator, pgbaton.LossReasonOf(two.Err()))
		require.NoError(t, one.Release(ctx))
	})
	t.Run("ATerm", func(t *testing.T) {
		t.Parallel()
		leading, stop := context.WithCancel(ctx)
		terms, over := make(chan error, 10), make(chan error, 1)
		go func() {
			over <- a.Lead(leading, "free/leader", func(ctx context.Context, _ *pgbaton.Lock) error {
				<-ctx.Done()
				terms <- context.Cause(ctx)
				return nil
			})
		}()
		free(t, find(t, &pgbaton.LockFilter{Kind: "term", Name: "free/leader"}), nil)
		require.Equal(t, freedByOperator, pgbaton.LossReasonOf(<-terms))
		stop()
		require.ErrorIs(t, <-over, context.Canceled)
	})
	t.Run("NotByANotificationAlone", func(t *testing.T) {
		t.Parallel()
		lock, err := a.Acquire(ctx, pgbaton.Name("free/notified"))
		require.NoError(t, err)
		held := find(t, &pgbaton.LockFilter{Key: lock.Key()})
		for _, channel := range []string{"pgbaton", "pgbaton_free", "pgbaton_lease"} {
			testkit.Exec(t, conn, "SELECT pg_notify($1, 'free/' || $2::bigint)", channel, held.Holder)
		}
		other, err := a.Acquire(ctx, pgbaton.Name("free/notified too"))
		require.NoError(t, err)
		free(t, find(t, &pgbaton.LockFilter{Key: other.Key()}), nil) // which comes behind
		<-other.Done()
		require.NoError(t, lock.Release(ctx))
	})
	t.Run("NotOfAnotherProgram", func(t *testing.T) {
		t.Parallel()
		_, err := b.Free(ctx, pgbaton.LockInfo{State: "held", Kind: "lock", Key: pgbaton.ID(1), Session: 4711}, nil)
		require.ErrorContains(t, err, "pg_terminate_backend(4711)")
	})
}

// A holder that does not answer is left alone, unless its session shall be ended.
func TestFree_OfAFrozenHolder(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	proxy, through := testkit.Through(t, dsn)
	ctx := testkit.Context(t)
	pool := testkit.Pool(t, dsn)
	config := pool.Config()
	config.ConnConfig.DialFunc = through.DialFunc
	behind, err := pgxpool.NewWithConfig(ctx, config)
	require.NoError(t, err)
	defer behind.Close()
	b := testclient.New(t, dsn, nil)
	frozen, err := pgbaton.New(ctx, behind, &pgbaton.Config{Name: "frozen", TTL: testkit.Patience, Engine: testclient.Engine()})
	require.NoError(t, err)
	defer func() { require.NoError(t, frozen.Close(ctx)) }()
	lock, err := frozen.Acquire(ctx, pgbaton.Name("frozen"))
	require.NoError(t, err)
	other, err := frozen.Acquire(ctx, pgbaton.Name("frozen too"))
	require.NoError(t, err)
	held := listed(t, b, &pgbaton.LockFilter{Key: lock.Key()}, "it", published)[0]
	proxy.Stall(true)
	_, err = b.Free(ctx, held, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, `lock "frozen too"`)
	freed, err := b.Free(ctx, held, &pgbaton.FreeOpts{EndSession: true})
	require.NoError(t, err)
	require.Len(t, freed, 2)
	for _, key := range []pgbaton.Key{lock.Key(), other.Key()} {
		mine, err := b.Acquire(ctx, key)
		require.NoError(t, err)
		require.NoError(t, mine.Release(ctx))
	}
	proxy.Stall(false)
	<-lock.Done()
	<-other.Done()
}
