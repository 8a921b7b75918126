package client

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func keysOf(names ...string) []pgbaton.Key {
	var keys []pgbaton.Key
	for _, name := range names {
		keys = append(keys, pgbaton.Name(name))
	}
	return keys
}

func TestAcquireAll(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)

	t.Run("HoldsEveryKeyOnce", func(t *testing.T) {
		t.Parallel()
		x, y, p := pgbaton.Name("a"), pgbaton.ID(12), pgbaton.Pair(1, -1)
		set, err := a.AcquireAll(ctx, p, x, y, x, pgbaton.ID(2167400190551539809)) // the last is the number of x
		require.NoError(t, err)
		for _, key := range []pgbaton.Key{p, x, y} {
			require.Positive(t, set.Lock(key).Token())
			_, err = b.TryAcquire(ctx, key)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		}
		require.Nil(t, set.Lock(pgbaton.Name("b")))
		require.NoError(t, set.Err())
		require.NoError(t, set.Context().Err())

		pool, err := pgxpool.New(ctx, dsn)
		require.NoError(t, err)
		defer pool.Close()
		tx, err := pool.Begin(ctx)
		require.NoError(t, err)
		require.NoError(t, set.Lock(x).Assert(ctx, tx))
		require.NoError(t, tx.Commit(ctx))

		require.NoError(t, set.Release(ctx))
		require.NoError(t, set.Release(ctx))
		<-set.Done()
		require.ErrorIs(t, set.Err(), pgbaton.ErrNotHeld)
		require.ErrorIs(t, context.Cause(set.Context()), pgbaton.ErrNotHeld)
		free(t, b, p, x, y)
	})
	t.Run("IsAllOrNothing", func(t *testing.T) {
		t.Parallel()
		keys := keysOf("n1", "n2", "n3", "n4", "n5")
		for _, taken := range keys {
			for _, holder := range []*pgbaton.Client{a, b} {
				lock, err := holder.Acquire(ctx, taken)
				require.NoError(t, err)
				_, err = a.TryAcquireAll(ctx, keys...)
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				require.ErrorContains(t, err, taken.String())
				require.NoError(t, lock.Release(ctx))
				free(t, b, keys...)
			}
		}
		// After the tries: a session that has gathered keys may only just be leaving, and a try would find it at another key.
		for _, taken := range keys {
			for _, holder := range []*pgbaton.Client{a, b} {
				lock, err := holder.Acquire(ctx, taken)
				require.NoError(t, err)
				short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				_, err = a.AcquireAll(short, keys...)
				cancel()
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NoError(t, lock.Release(ctx))
				free(t, b, keys...)
			}
		}
	})
	t.Run("RefusesNoKeysAndInvalidOnes", func(t *testing.T) {
		t.Parallel()
		_, err := a.AcquireAll(ctx)
		require.ErrorContains(t, err, "no keys")
		_, err = a.TryAcquireAll(ctx, pgbaton.Name("fine"), pgbaton.Key{})
		require.ErrorContains(t, err, "zero Key")
		ended, cancel := context.WithCancel(ctx)
		cancel()
		_, err = a.AcquireAll(ended, keysOf("fine")...)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("WaitsForEachTakenKey", func(t *testing.T) {
		t.Parallel()
		keys := keysOf("w1", "w2", "w3", "w4")
		first, err := a.AcquireAll(ctx, keys[1], keys[3])
		require.NoError(t, err)
		second, err := b.AcquireAll(ctx, keys[0], keys[2])
		require.NoError(t, err)
		var sets [2]*pgbaton.LockSet
		var wg sync.WaitGroup
		for i, client := range []*pgbaton.Client{a, b} {
			wg.Go(func() {
				set, err := client.AcquireAll(ctx, keys...)
				if err != nil {
					t.Error(err)
					return
				}
				sets[i] = set
				if err = set.Release(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		require.NoError(t, second.Release(ctx))
		require.NoError(t, first.Release(ctx))
		wg.Wait()
		require.NotEqual(t, sets[0].Lock(keys[0]).Token(), sets[1].Lock(keys[0]).Token())
	})
}

// free requires that nobody holds any of the keys.
func free(t *testing.T, client *pgbaton.Client, keys ...pgbaton.Key) {
	t.Helper()
	require.EventuallyWithT(t, func(c *assert.CollectT) { // what nobody waits for goes back without waiting
		set, err := client.TryAcquireAll(context.Background(), keys...)
		require.NoError(c, err)
		require.NoError(c, set.Release(context.Background()))
	}, testkit.Patience, 2*time.Millisecond)
}

func TestAcquireAll_LossOfOneEndsTheSet(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client := testclient.New(t, testkit.Named(t, dsn, "loser"), nil)
	set, err := client.AcquireAll(ctx, keysOf("a", "b", "c")...)
	require.NoError(t, err)
	held := set.Context()
	testkit.Value[int64](t, testkit.Connect(t, dsn),
		"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'loser' AND datname = current_database()")
	<-set.Done()
	<-held.Done()
	require.ErrorIs(t, set.Err(), pgbaton.ErrLost)
	require.ErrorIs(t, context.Cause(held), pgbaton.ErrLost)
	require.Equal(t, "terminated by an operator or by the server's shutdown", pgbaton.LossReasonOf(set.Err()))
	first := set.Release(ctx)
	require.ErrorIs(t, first, pgbaton.ErrLost)
	for _, name := range []string{"a", "b", "c"} {
		require.ErrorContains(t, first, `"`+name+`"`)
	}
	require.Equal(t, first.Error(), set.Release(ctx).Error())
}

// A key that is lost while the set waits for another one is acquired anew.
func TestAcquireAll_LossWhileItWaits(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client, other := testclient.New(t, testkit.Named(t, dsn, "loser"), nil), testclient.New(t, dsn, nil)
	first, second := pgbaton.ID(1), pgbaton.ID(2) // in the order in which they are taken
	taken, err := other.Acquire(ctx, second)
	require.NoError(t, err)
	conn := testkit.Connect(t, dsn)
	sets := make(chan *pgbaton.LockSet)
	go func() {
		set, err := client.AcquireAll(ctx, second, first)
		if err != nil {
			t.Error(err)
		}
		sets <- set
	}()
	waiting(t, conn) // for the second
	_, err = other.TryAcquire(ctx, first)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	testkit.Value[int64](t, conn,
		"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'loser' AND datname = current_database()")
	require.Eventually(t, func() bool { // it is lost, and nobody takes it
		lock, err := other.TryAcquire(ctx, first)
		return err == nil && lock.Release(ctx) == nil
	}, testkit.Patience, time.Millisecond)
	require.NoError(t, taken.Release(ctx))
	set := <-sets
	require.NotNil(t, set)
	require.NoError(t, set.Err())
	for _, key := range []pgbaton.Key{first, second} {
		_, err = other.TryAcquire(ctx, key)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	}
	require.NoError(t, set.Release(ctx))
}

// The keys that are released by themselves end the set, too.
func TestAcquireAll_ReleaseOfOneEndsTheSet(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), nil)
	set, err := client.AcquireAll(t.Context(), keysOf("a", "b")...)
	require.NoError(t, err)
	require.NoError(t, set.Lock(pgbaton.Name("a")).Release(t.Context()))
	<-set.Done()
	require.ErrorIs(t, set.Err(), pgbaton.ErrNotHeld)
	require.NoError(t, set.Lock(pgbaton.Name("b")).Err())
	require.NoError(t, set.Release(t.Context()))
}

// writes counts what a connection sends.
type writes struct {
	net.Conn

	count *atomic.Int64
}

func (w writes) Write(p []byte) (int, error) {
	w.count.Add(1)
	return w.Conn.Write(p)
}

func TestAcquireAll_RoundTrips(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	var sent atomic.Int64
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return writes{conn, &sent}, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	defer pool.Close()
	client, err := pgbaton.New(ctx, pool, &pgbaton.Config{TTL: time.Minute})
	require.NoError(t, err)
	defer client.Close(ctx)
	other := testclient.New(t, dsn, nil)

	var keys []pgbaton.Key
	for i := range 50 {
		keys = append(keys, pgbaton.ID(int64(i)))
	}
	count := func(f func()) int64 {
		before := sent.Load()
		f()
		return sent.Load() - before
	}
	var set *pgbaton.LockSet
	require.Equal(t, int64(1), count(func() { set, err = client.AcquireAll(ctx, keys...) }), "to acquire 50 free keys")
	require.NoError(t, err)
	require.Equal(t, int64(1), count(func() { err = set.Release(ctx) }), "to release them")
	require.NoError(t, err)
	lock, err := other.Acquire(ctx, keys[20])
	require.NoError(t, err)
	require.Equal(t, int64(2), count(func() { _, err = client.TryAcquireAll(ctx, keys...) }),
		"to find one taken and give the others back")
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, lock.Release(ctx))
}
