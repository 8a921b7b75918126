package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

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
		all := listed(t, b, &pgbaton.LockFilter{Kind: "permit", Name: "free/sem"}, "both", func(all []pgbaton.LockInfo) bool {
			return len(all) == 2 && all[0].Token != 0 && all[1].Token != 0
		})
		unknown := all[0]
		unknown.Token = 0
		_, err = b.Free(ctx, unknown, nil)
		require.ErrorContains(t, err, "list again")
		for _, held := range all {
			if held.Permits == 2 {
				free(t, held, nil)
			}
		}
		<-two.Done()
		require.Equal(t, freedByOperator, pgbaton.LossReasonOf(two.Err()))
		require.NoError(t, one.Release(ctx))
	})
	t.Run("APermitOfAClaim", func(t *testing.T) {
		t.Parallel()
		sem, err := a.Semaphore(ctx, "free/claim", 3)
		require.NoError(t, err)
		first, err := sem.Acquire(ctx, 3)
		require.NoError(t, err)
		permits := make(chan *pgbaton.Permit)
		for range 3 {
			go func() {
				p, err := sem.Acquire(ctx, 1)
				if err != nil {
					t.Error(err)
				}
				permits <- p
			}()
		}
		listed(t, b, &pgbaton.LockFilter{Kind: "permit", Name: "free/claim"}, "all wait", func(all []pgbaton.LockInfo) bool { return count(all, "waiting") == 3 })
		require.NoError(t, first.Release(ctx)) // what it had claimed is handed over
		held := map[pgbaton.Token]*pgbaton.Permit{}
		for range 3 {
			p := <-permits
			held[p.Token()] = p
		}
		all := listed(t, b, &pgbaton.LockFilter{Kind: "permit", Name: "free/claim"}, "each", func(all []pgbaton.LockInfo) bool {
			return len(all) == 3 && all[0].Token != 0 && all[1].Token != 0 && all[2].Token != 0
		})
		require.Len(t, free(t, all[1], nil), 1)
		<-held[all[1].Token].Done()
		require.NoError(t, held[all[0].Token].Release(ctx))
		require.NoError(t, held[all[2].Token].Release(ctx))
	})
	t.Run("AShareOfTheKey", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Name("free/shared")
		one, err := a.AcquireShared(ctx, key)
		require.NoError(t, err)
		two, err := a.AcquireShared(ctx, key)
		require.NoError(t, err)
		held := find(t, &pgbaton.LockFilter{Key: key})
		held.Token = 0
		free(t, held, nil)
		lost, kept := one, two
		select {
		case <-one.Done():
		case <-two.Done():
			lost, kept = two, one
		}
		require.Equal(t, freedByOperator, pgbaton.LossReasonOf(lost.Err()))
		if testclient.Engine() == pgbaton.EngineLease { // the shares of one client are one row
			<-kept.Done()
			require.Equal(t, freedByOperator, pgbaton.LossReasonOf(kept.Err()))
			return
		}
		require.NoError(t, kept.Release(ctx))
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

// What was handed over within the process is freed by what is on record of it, whichever engine has the record.
func TestFree_AfterAHandOver(t *testing.T) {
	t.Parallel()
	for _, engine := range []pgbaton.Engine{pgbaton.EngineSession, pgbaton.EngineLease} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			ctx := testkit.Context(t)
			a := testclient.New(t, dsn, &pgbaton.Config{TTL: time.Hour, Engine: engine})
			b := testclient.New(t, dsn, &pgbaton.Config{TTL: time.Hour, Engine: engine})
			key := pgbaton.Name("k")
			first, err := a.Acquire(ctx, key)
			require.NoError(t, err)
			second := make(chan *pgbaton.Lock)
			go func() {
				lock, err := a.Acquire(ctx, key)
				if err != nil {
					t.Error(err)
				}
				second <- lock
			}()
			listed(t, b, &pgbaton.LockFilter{Key: key}, "it waits", func(all []pgbaton.LockInfo) bool { return count(all, "waiting") == 1 })
			require.NoError(t, first.Release(ctx))
			lock := <-second
			held := listed(t, b, &pgbaton.LockFilter{Key: key}, "it", func(all []pgbaton.LockInfo) bool {
				return published(all) && (engine == pgbaton.EngineLease || all[0].Token == lock.Token())
			})[0]
			for {
				_, err = b.Free(ctx, held, nil)
				if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil { // else the machine stands still
					break
				}
			}
			require.NoError(t, err)
			<-lock.Done()
			require.Equal(t, freedByOperator, pgbaton.LossReasonOf(lock.Err()))
		})
	}
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
	brief, cancel := context.WithCancel(ctx)
	go func() {
		testkit.WaitFor(t, testkit.Connect(t, dsn), "SELECT count(*) = 1 FROM pgbaton.freeing")
		cancel()
	}()
	_, err = b.Free(brief, held, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "not answered", testkit.Value[string](t, testkit.Connect(t, dsn), "SELECT outcome FROM pgbaton.freeing"), "it is withdrawn")
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
