package client

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// engineOf opens a client of an engine that holds a lock.
func engineOf(t *testing.T, dsn string, engine pgbaton.Engine) *pgbaton.Client {
	t.Helper()
	client := testclient.New(t, dsn, &pgbaton.Config{Engine: engine, Name: "a client of " + string(engine)})
	lock, err := client.Acquire(testkit.Context(t), pgbaton.Name("engine/"+string(engine)))
	require.NoError(t, err)
	require.NoError(t, lock.Release(testkit.Context(t)))
	return client
}

// The first lock records the engine. A client that has another one gets the typed error, which names who recorded it; one
// that has none follows.
func TestEngine_Recorded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ first, other pgbaton.Engine }{
		{pgbaton.EngineSession, pgbaton.EngineLease}, {pgbaton.EngineLease, pgbaton.EngineSession},
	} {
		t.Run(string(c.first), func(t *testing.T) {
			t.Parallel()
			ctx := testkit.Context(t)
			dsn := testkit.Migrated(t)
			early := testclient.New(t, dsn, &pgbaton.Config{Engine: c.other}) // nothing is recorded yet
			engineOf(t, dsn, c.first)
			_, err := early.Acquire(ctx, pgbaton.Name("late"))
			require.ErrorIs(t, err, pgbaton.ErrEngine)
			require.ErrorContains(t, err, "a client of "+string(c.first))
			err = early.Lead(ctx, "late", func(context.Context, *pgbaton.Lock) error { return nil })
			require.ErrorIs(t, err, pgbaton.ErrEngine, "a candidate")
			require.NoError(t, ctx.Err())
			_, err = pgbaton.Open(ctx, dsn, &pgbaton.Config{Engine: c.other})
			require.ErrorIs(t, err, pgbaton.ErrEngine)
			require.ErrorContains(t, err, "a client of "+string(c.first))
			require.ErrorContains(t, err, "change_engine")

			follower := testclient.New(t, dsn, &pgbaton.Config{Engine: pgbaton.EngineAuto})
			found, err := follower.Diagnose(ctx)
			require.NoError(t, err)
			require.Equal(t, string(c.first), found.Engine)
			lock, err := follower.Acquire(ctx, pgbaton.Name("follower"))
			require.NoError(t, err)
			require.NoError(t, lock.Release(ctx))
		})
	}
	_, err := pgbaton.Open(t.Context(), "postgres://nowhere", &pgbaton.Config{Engine: "redis"})
	require.ErrorContains(t, err, "Config.Engine")
}

// Under the third record a lock excludes the locks of either engine, and tokens rise across all.
func TestEngine_Both(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	key := pgbaton.Name("moving")
	var newest pgbaton.Token
	hold := func(client *pgbaton.Client, others ...*pgbaton.Client) {
		t.Helper()
		lock, err := client.Acquire(ctx, key)
		require.NoError(t, err)
		require.Greater(t, lock.Token(), newest)
		newest = lock.Token()
		for _, other := range others {
			_, err := other.TryAcquire(ctx, key)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		}
		require.NoError(t, lock.Release(ctx))
	}
	for _, way := range [][2]pgbaton.Engine{
		{pgbaton.EngineSession, pgbaton.EngineLease}, {pgbaton.EngineLease, pgbaton.EngineSession},
	} {
		from, to := way[0], way[1]
		before := testclient.Open(t, dsn, &pgbaton.Config{Engine: from})
		hold(before)
		_, err := conn.Exec(ctx, "SELECT pgbaton.change_engine($1)", string(to))
		require.ErrorContains(t, err, "over both")
		testkit.Exec(t, conn, "SELECT pgbaton.change_engine('both')")
		between := testclient.Open(t, dsn, &pgbaton.Config{Engine: from})
		found, err := between.Diagnose(ctx)
		require.NoError(t, err)
		require.Equal(t, "both", found.Engine)
		hold(before, between)
		hold(between, before)
		hold(before, between)

		_, err = conn.Exec(ctx, "SELECT pgbaton.change_engine($1)", string(to))
		require.ErrorContains(t, err, "by the other engine alone")
		require.NoError(t, before.Close(ctx))
		testkit.Eventually(t, "the old clients are gone", func() bool {
			_, err := conn.Exec(ctx, "SELECT pgbaton.change_engine($1)", string(to))
			return err == nil
		})
		after := testclient.Open(t, dsn, &pgbaton.Config{Engine: to})
		hold(after, between)
		hold(between, after)
		hold(after, between)
		require.NoError(t, between.Close(ctx))
		hold(after)
		require.NoError(t, after.Close(ctx))
	}
}

// Under both, a statement that fails costs no lock, and what it had taken is given back: it fails at a row that another transaction has,
// or at the token, when it has the advisory lock already.
func TestEngine_BothFails(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	conn, other := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	testkit.Exec(t, conn, "SELECT pgbaton.change_engine('both')")
	client := testclient.New(t, dsn, nil)
	kept, err := client.Acquire(ctx, pgbaton.ID(1))
	require.NoError(t, err)
	lock, err := client.AcquireShared(ctx, pgbaton.ID(2))
	require.NoError(t, err)
	require.NoError(t, lock.Release(ctx))
	for _, block := range []string{
		"SELECT FROM pgbaton.lease WHERE key = 2 FOR UPDATE", "LOCK TABLE pgbaton.incarnation IN ACCESS EXCLUSIVE MODE",
	} {
		for _, try := range []func(context.Context, pgbaton.Key) (*pgbaton.Lock, error){client.TryAcquire, client.TryAcquireShared} {
			testkit.Exec(t, other, "BEGIN; "+block)
			_, err = try(ctx, pgbaton.ID(2))
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired, block)
			require.Zero(t, testkit.Value[int](t, conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 0 AND objid = 2"+
				" AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"), block)
			testkit.Exec(t, other, "COMMIT")
			lock, err = try(ctx, pgbaton.ID(2))
			require.NoError(t, err)
			require.NoError(t, lock.Release(ctx))
		}
	}
	require.NoError(t, kept.Err())
	require.NoError(t, kept.Release(ctx), "it was held all the time")
}

// A client goes on with its engine on the way to the other one, also after a lost connection, until its restart.
func TestEngine_ComesBack(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	for _, engine := range []pgbaton.Engine{pgbaton.EngineSession, pgbaton.EngineLease} {
		t.Run(string(engine), func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			client := engineOf(t, testkit.Named(t, dsn, "before"), engine)
			conn := testkit.Connect(t, dsn)
			testkit.Exec(t, conn, "SELECT pgbaton.change_engine('both')")
			lock, err := client.Acquire(ctx, pgbaton.ID(1))
			require.NoError(t, err)
			testkit.Exec(t, conn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'before'")
			<-lock.Done()
			require.ErrorIs(t, lock.Release(ctx), pgbaton.ErrLost)
			lock, err = client.Acquire(ctx, pgbaton.ID(1))
			require.NoError(t, err)
			after := testclient.New(t, dsn, &pgbaton.Config{Engine: engine})
			other, err := after.TryAcquire(ctx, pgbaton.ID(1))
			if err == nil { // the lock was granted at one more session that was about to end
				<-lock.Done()
				require.NoError(t, other.Release(ctx))
				lock, err = client.Acquire(ctx, pgbaton.ID(1))
				require.NoError(t, err)
				_, err = after.TryAcquire(ctx, pgbaton.ID(1))
			}
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			found, err := after.Diagnose(ctx)
			require.NoError(t, err)
			require.Equal(t, "both", found.Engine, "what is opened follows the record")
			require.NoError(t, lock.Release(ctx))
		})
	}
}

// Leases are shared, and sets of them exclude, in all spaces of keys.
func TestEngine_SharedAndSets(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	one, two := engineOf(t, dsn, pgbaton.EngineLease), engineOf(t, dsn, pgbaton.EngineLease)
	first, err := one.AcquireShared(ctx, pgbaton.ID(1))
	require.NoError(t, err)
	second, err := two.AcquireShared(ctx, pgbaton.ID(1))
	require.NoError(t, err)
	require.NotEqual(t, first.Token(), second.Token())
	_, err = two.TryAcquireAll(ctx, pgbaton.ID(2), pgbaton.ID(1), pgbaton.Pair(0, 1))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)

	sets := make(chan *pgbaton.LockSet, 1)
	go func() {
		set, err := two.AcquireAll(ctx, pgbaton.ID(2), pgbaton.ID(1), pgbaton.Pair(0, 1))
		if err != nil {
			t.Error(err)
		}
		sets <- set
	}()
	require.NoError(t, second.Release(ctx))
	require.NoError(t, first.Release(ctx))
	set := <-sets
	require.Greater(t, set.Lock(pgbaton.ID(1)).Token(), second.Token())
	_, err = one.TryAcquireShared(ctx, pgbaton.ID(2))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, set.Release(ctx))
}

// A wait that its context ends leaves no turn behind that keeps others from the key.
func TestEngine_TurnGivenUp(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	one, two, three := engineOf(t, dsn, pgbaton.EngineLease), engineOf(t, dsn, pgbaton.EngineLease), engineOf(t, dsn, pgbaton.EngineLease)
	conn := testkit.Connect(t, dsn)
	lock, err := one.Acquire(ctx, pgbaton.ID(7))
	require.NoError(t, err)
	waiting, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := two.Acquire(waiting, pgbaton.ID(7))
		ended <- err
	}()
	testkit.WaitFor(t, conn, "SELECT next IS NOT NULL FROM pgbaton.lease WHERE key = 7")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	testkit.WaitFor(t, conn, "SELECT next IS NULL FROM pgbaton.lease WHERE key = 7")
	require.NoError(t, lock.Release(ctx))
	lock, err = three.Acquire(ctx, pgbaton.ID(7))
	require.NoError(t, err)
	require.NoError(t, lock.Release(ctx))
}

// An operator who ends the session of a client of leases ends its leases: the holder is told, and others go on at once.
func TestEngine_Terminated(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	one, two := engineOf(t, testkit.Named(t, dsn, "one"), pgbaton.EngineLease), engineOf(t, dsn, pgbaton.EngineLease)
	lock, err := one.Acquire(ctx, pgbaton.ID(8))
	require.NoError(t, err)
	next := make(chan *pgbaton.Lock, 1)
	go func() {
		after, err := two.Acquire(ctx, pgbaton.ID(8))
		if err != nil {
			t.Error(err)
		}
		next <- after
	}()
	conn := testkit.Connect(t, dsn)
	testkit.WaitFor(t, conn, "SELECT next IS NOT NULL FROM pgbaton.lease WHERE key = 8")
	testkit.Exec(t, conn, `SELECT pg_terminate_backend(c.pid) FROM pgbaton.lock_client AS c JOIN pgbaton.lease AS l ON l.holder = c.id WHERE l.key = 8`)
	after := <-next
	require.Greater(t, after.Token(), lock.Token())
	<-lock.Done()
	require.Equal(t, "terminated by an operator or by the server's shutdown", pgbaton.LossReasonOf(lock.Err()))
	require.ErrorIs(t, lock.Release(ctx), pgbaton.ErrLost)
	require.NoError(t, after.Release(ctx))
	lock, err = one.Acquire(ctx, pgbaton.ID(8)) // it has another session by now
	require.NoError(t, err)
	require.NoError(t, lock.Release(ctx))
}

// What is renewed is held for longer than a TTL, and a lease whose row is somebody else's is lost, whichever it is of many.
func TestEngine_Renewed(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	const ttl = 3 * time.Second
	client := testclient.New(t, dsn, &pgbaton.Config{Engine: pgbaton.EngineLease, TTL: ttl})
	conn := testkit.Connect(t, dsn)
	var locks []*pgbaton.Lock
	for i := range 5 {
		lock, err := client.Acquire(ctx, pgbaton.ID(int64(i)))
		require.NoError(t, err)
		locks = append(locks, lock)
	}
	first := testkit.Value[time.Time](t, conn, "SELECT min(expires_at) FROM pgbaton.lease")
	require.Eventually(t, func() bool {
		return testkit.Value[time.Time](t, conn, "SELECT min(expires_at) FROM pgbaton.lease").After(first.Add(ttl))
	}, testkit.Patience, 10*time.Millisecond)
	testkit.Exec(t, conn, "UPDATE pgbaton.lease SET holder = -1, token = token + 1, last = last + 1 WHERE key = 3")
	<-locks[3].Done()
	require.Equal(t, "lease expired", pgbaton.LossReasonOf(locks[3].Err()))
	require.ErrorIs(t, locks[3].Release(ctx), pgbaton.ErrLost)
	require.NoError(t, locks[4].Release(ctx))
}
