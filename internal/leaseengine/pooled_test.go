package leaseengine

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// fixture is a lock manager over the engine, which takes its connection for a pooler's.
type fixture struct {
	*lockmgr.Manager
	engine *Engine
	proxy  *testkit.Proxy
	admin  *pgx.Conn
}

func newFixture(t *testing.T, ttl time.Duration) *fixture {
	t.Helper()
	dsn := testkit.Migrated(t)
	proxy, cfg := testkit.Through(t, dsn)
	dialer := &session.Dialer{Config: cfg, TTL: ttl}
	f := &fixture{proxy: proxy, admin: testkit.Connect(t, dsn)}
	f.engine = New(Config{
		TTL: ttl, Name: "me", Pooled: true, Budget: session.NewBudget(4), Dial: dialer.DialPooled, Report: func(string, error) {},
	})
	var err error
	f.Manager, err = lockmgr.New(testkit.Context(t), lockmgr.Config{Engine: f.engine, Report: func(event string, err error) { t.Error(event, err) }})
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close(context.Background()) }) // the network may be gone
	return f
}

func (f *fixture) acquire(t *testing.T, key int64) *lockmgr.Hold {
	t.Helper()
	hold, err := f.Acquire(testkit.Context(t), advisory.Named{Key: advisory.Key{ID: key}}, advisory.Exclusive, false)
	require.NoError(t, err)
	return hold
}

// before has a statement of PL/pgSQL run before a lease changes.
func (f *fixture) before(t *testing.T, statement string) {
	t.Helper()
	testkit.Exec(t, f.admin, `CREATE FUNCTION pgbaton.spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN `+statement+` RETURN new; END $$`)
	testkit.Exec(t, f.admin, `CREATE TRIGGER spoil BEFORE UPDATE ON pgbaton.lease FOR EACH ROW EXECUTE FUNCTION pgbaton.spoil()`)
}

// A lease outlives connections: the next one takes it over, and releases it.
func TestPooled_OutlivesConnections(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	hold := f.acquire(t, 1)
	holder := "SELECT holder FROM pgbaton.lease WHERE key = 1"
	for range 3 {
		before := testkit.Value[int64](t, f.admin, holder)
		f.proxy.Cut()
		require.Eventually(t, func() bool { return testkit.Value[int64](t, f.admin, holder) != before }, testkit.Patience, time.Millisecond)
		require.NoError(t, hold.Err())
	}
	require.NoError(t, hold.Release())
	testkit.WaitFor(t, f.admin, "SELECT holder IS NULL FROM pgbaton.lease WHERE key = 1")
	require.NoError(t, f.acquire(t, 1).Release())
}

// Close gives back what a connection had that was lost, also if the next one has not come to take it over.
func TestPooled_CloseAfterALostConnection(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	f.acquire(t, 1)
	f.before(t, "IF new.holder <> old.holder THEN RAISE EXCEPTION USING ERRCODE = 'serialization_failure'; END IF;")
	link := func() *link {
		f.engine.mu.Lock()
		defer f.engine.mu.Unlock()
		return f.engine.anchor.link
	}
	before := link()
	f.proxy.Cut()
	require.Eventually(t, func() bool { now := link(); return now != nil && now != before }, testkit.Patience, time.Millisecond)
	require.NoError(t, f.Close(testkit.Context(t)))
	require.True(t, testkit.Value[bool](t, f.admin, "SELECT holder IS NULL FROM pgbaton.lease WHERE key = 1"))
}

// An acquire whose answer was lost may have left a lease: it is given back when the next connection comes, long before it expires.
func TestPooled_LostGrantIsGivenBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	kept := f.acquire(t, 1)
	f.before(t, "IF new.key = 2 THEN PERFORM pg_advisory_xact_lock_shared(4711); END IF;")
	testkit.Exec(t, f.admin, "SELECT pg_advisory_lock(4711)")
	ctx, cancel := context.WithCancel(testkit.Context(t))
	ended := make(chan error, 1)
	go func() {
		_, err := f.Acquire(ctx, advisory.Named{Key: advisory.Key{ID: 2}}, advisory.Exclusive, false)
		ended <- err
	}()
	testkit.WaitFor(t, f.admin, "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"+
		" AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	// The server grants while the answer cannot arrive.
	f.proxy.Stall(true)
	testkit.Exec(t, f.admin, "SELECT pg_advisory_unlock(4711)")
	testkit.WaitFor(t, f.admin, "SELECT EXISTS (SELECT FROM pgbaton.lease WHERE key = 2 AND holder IS NOT NULL)")
	f.proxy.Cut()
	f.proxy.Stall(false)
	testkit.WaitFor(t, f.admin, "SELECT holder IS NULL FROM pgbaton.lease WHERE key = 2")
	require.NoError(t, kept.Err())
	require.NoError(t, kept.Release())
}

// A release whose answer was lost is looked up: it was carried out, so it was held until then.
func TestPooled_LostReleaseIsLookedUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	for _, arrives := range []bool{true, false} {
		hold := f.acquire(t, 3)
		f.proxy.Stall(true)
		if arrives { // as if it had been carried out before the connection was cut
			testkit.Exec(t, f.admin, "UPDATE pgbaton.lease SET holder = NULL, token = NULL, expires_at = NULL, length = NULL WHERE key = 3")
		}
		released := make(chan error, 1)
		go func() { released <- hold.Release() }()
		require.Eventually(t, func() bool {
			f.engine.mu.Lock()
			defer f.engine.mu.Unlock()
			l := f.engine.anchor.leases[advisory.Key{ID: 3}]
			return l != nil && l.releasing
		}, testkit.Patience, time.Millisecond)
		f.proxy.Cut()
		f.proxy.Stall(false)
		require.NoError(t, <-released, "arrives: %v", arrives)
		testkit.WaitFor(t, f.admin, "SELECT holder IS NULL FROM pgbaton.lease WHERE key = 3")
	}
	// Without a lost answer, a lease that is gone is one that was lost.
	hold := f.acquire(t, 3)
	testkit.Exec(t, f.admin, "UPDATE pgbaton.lease SET holder = NULL, token = NULL WHERE key = 3")
	require.ErrorIs(t, hold.Release(), lockerr.Lost)
}

// On a silent network the holder is told before the lease expires, and what it held is free by the clock. Then it goes on.
func TestPooled_SilentNetwork(t *testing.T) {
	t.Parallel()
	const ttl = 3 * time.Second
	f := newFixture(t, ttl)
	hold := f.acquire(t, 4)
	f.proxy.Stall(true)
	<-hold.Done()
	require.ErrorIs(t, hold.Err(), lockerr.Lost)
	f.proxy.Cut()
	f.proxy.Stall(false)
	require.ErrorIs(t, hold.Release(), lockerr.Lost)
	again := f.acquire(t, 4)
	require.Greater(t, again.Token(), hold.Token())
	require.NoError(t, again.Release())
}

// A statement that cannot be serialized, however often, runs again; a release is never refused.
func TestPooled_SerializationFailures(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	f.before(t, "IF random() < 0.3 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END IF;")
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for range 10 {
				hold, err := f.Acquire(testkit.Context(t), advisory.Named{Key: advisory.Key{ID: int64(worker)}}, advisory.Exclusive, false)
				if err != nil {
					t.Error(err)
					return
				}
				if err := hold.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	require.Zero(t, testkit.Value[int](t, f.admin, "SELECT count(*) FROM pgbaton.lease WHERE holder IS NOT NULL"))
}

// A client whose network is gone is closed in the time that its context gives.
func TestPooled_CloseOnSilentNetwork(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	hold := f.acquire(t, 5)
	f.proxy.Stall(true)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, f.Close(ctx), context.DeadlineExceeded)
	require.ErrorIs(t, hold.Err(), lockerr.Lost)
}

// What is given back last may have to give way to other transactions as well, and is then given back again.
func TestPooled_CloseInSpiteOfConflicts(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testkit.Patience)
	f.acquire(t, 1)
	testkit.Exec(t, f.admin, "CREATE SEQUENCE pgbaton.spoils")
	f.before(t, "IF nextval('pgbaton.spoils') <= 3 THEN RAISE EXCEPTION 'again' USING ERRCODE = 'serialization_failure'; END IF;")
	require.NoError(t, f.Close(testkit.Context(t)))
	require.Equal(t, int64(4), testkit.Value[int64](t, f.admin, "SELECT last_value FROM pgbaton.spoils"))
	require.True(t, testkit.Value[bool](t, f.admin, "SELECT holder IS NULL FROM pgbaton.lease WHERE key = 1"))
}

// A row that another transaction has holds up its own key, and no other: it is not granted, and its lease ends when it is not renewed.
func TestPooled_LockedRow(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	f := newFixture(t, 3*time.Second)
	require.NoError(t, f.acquire(t, 1).Release()) // its row is there
	lost, kept := f.acquire(t, 2), f.acquire(t, 3)
	tx, err := f.admin.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "SELECT FROM pgbaton.lease WHERE key IN (1, 2) FOR UPDATE")
	require.NoError(t, err)
	var group sync.WaitGroup
	for key := range int64(20) {
		group.Go(func() { // in one round trip with what fails
			hold, err := f.Acquire(ctx, advisory.Named{Key: advisory.Key{ID: 100 + key}}, advisory.Exclusive, false)
			if err == nil {
				err = hold.Release()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	_, err = f.Acquire(ctx, advisory.Named{Key: advisory.Key{ID: 1}}, advisory.Exclusive, true)
	require.ErrorIs(t, err, lockerr.NotAcquired)
	waits := make(chan error, 1)
	go func() {
		hold, err := f.Acquire(ctx, advisory.Named{Key: advisory.Key{ID: 1}}, advisory.Exclusive, false)
		if err == nil {
			err = hold.Release()
		}
		waits <- err
	}()
	group.Wait()
	<-lost.Done()
	require.ErrorIs(t, lost.Err(), lockerr.Lost)
	require.NoError(t, kept.Err())
	require.NoError(t, f.acquire(t, 4).Release())
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, <-waits)
	require.NoError(t, kept.Release())
}

// The row of a key has its name, where the database has its characters.
func TestPooled_Names(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	f := newFixture(t, testkit.Patience)
	name := "SELECT name FROM pgbaton.lease WHERE key = $1"
	for key, called := range map[int64]string{1: "orders/4711", 2: "größe", 3: ""} {
		for range 2 { // one call for a new key, another for one that was held
			hold, err := f.Acquire(ctx, advisory.Named{Key: advisory.Key{ID: key}, Name: called}, advisory.Exclusive, false)
			require.NoError(t, err)
			if called == "" {
				require.Nil(t, testkit.Value[*string](t, f.admin, name, key))
			} else {
				require.Equal(t, called, testkit.Value[string](t, f.admin, name, key))
			}
			require.NoError(t, hold.Release())
		}
	}
	latin := &link{}
	require.Equal(t, "orders", latin.tellable("orders"))
	require.Empty(t, latin.tellable("größe"))
}

// A lease that a renewal left out ends the trust in all of them when it was to end, until it is renewed or given up.
func TestPooled_TrustAfterAMiss(t *testing.T) {
	t.Parallel()
	e := New(Config{TTL: testkit.Patience, Pooled: true})
	e.closed = true // nothing is renewed by itself
	a := newAnchor(e)
	held := []advisory.Key{{ID: 1}, {ID: 2}}
	leases := []*lease{{token: 1}, {token: 2}}
	for i, key := range held {
		a.add(key, leases[i], a.born)
	}
	trust := func(sent time.Time) int64 { return int64(sent.Sub(a.born) + span(e.cfg.TTL)) }
	renew := func(after time.Duration, missed bool) []advisory.Key {
		r := &round{renews: held, leases: leases, renewed: []bool{true, !missed}, missed: []bool{false, missed}}
		return r.noteRenewal(a, a.born.Add(after))
	}
	require.Empty(t, renew(time.Second, true))
	require.Equal(t, trust(a.born), a.trusts.Load(), "the one that was left out ends then")
	require.Empty(t, renew(2*time.Second, false))
	require.Equal(t, trust(a.born.Add(2*time.Second)), a.trusts.Load())
	require.Empty(t, renew(3*time.Second, true))
	require.Equal(t, held[1:], renew(4*time.Second, true), "twice")
	require.Equal(t, trust(a.born.Add(4*time.Second)), a.trusts.Load(), "of the other")
}
