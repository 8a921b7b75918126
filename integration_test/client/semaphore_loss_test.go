package client

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// openSemaphore opens a client and a semaphore in a database, and a connection to look at it from outside.
func openSemaphore(t *testing.T, capacity int, ttl time.Duration) (*pgbaton.Semaphore, string, *pgx.Conn) {
	t.Helper()
	dsn := testkit.Migrated(t)
	s, err := testclient.New(t, dsn, &pgbaton.Config{TTL: ttl}).Semaphore(t.Context(), "s", capacity)
	require.NoError(t, err)
	return s, dsn, testkit.Connect(t, dsn)
}

// through opens another client on a semaphore, over a network that can be spoiled.
func through(t *testing.T, dsn string, ttl time.Duration, capacity int) (*pgbaton.Semaphore, *testkit.Proxy) {
	t.Helper()
	proxy, through := testkit.Through(t, dsn)
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	config.ConnConfig.DialFunc = through.DialFunc
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	client, err := pgbaton.New(t.Context(), pool, &pgbaton.Config{TTL: ttl})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		_ = client.Close(ctx) // the network may be gone
	})
	s, err := client.Semaphore(t.Context(), "s", capacity)
	require.NoError(t, err)
	return s, proxy
}

// terminateHolders ends the sessions that hold permits.
func terminateHolders(t *testing.T, admin *pgx.Conn) {
	t.Helper()
	n := testkit.Value[int](t, admin, `
SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks AS l JOIN pgbaton.holder AS h
    ON l.classid = (h.id >> 32)::oid AND l.objid = (h.id & 4294967295)::oid AND l.objsubid = 1
 WHERE l.locktype = 'advisory' AND l.granted`)
	require.Positive(t, n)
}

// The end of a session is the end of its permits: the holder is told, and others have them at once.
func TestPermit_SessionEnded(t *testing.T) {
	t.Parallel()
	s, dsn, admin := openSemaphore(t, 2, time.Hour) // nobody waits for its end
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	p, err := s.Acquire(ctx, 2)
	require.NoError(t, err)
	held := p.Context()

	terminateHolders(t, admin)
	soon(t, p.Done())
	require.ErrorIs(t, p.Err(), pgbaton.ErrLost)
	require.Equal(t, "terminated by an operator or by the server's shutdown", pgbaton.LossReasonOf(p.Err()))
	require.ErrorIs(t, context.Cause(held), pgbaton.ErrLost)
	require.ErrorIs(t, p.Release(ctx), pgbaton.ErrLost)
	require.ErrorIs(t, p.Release(ctx), pgbaton.ErrLost, "twice")

	other, err := testclient.New(t, dsn, nil).Semaphore(ctx, "s", 2)
	require.NoError(t, err)
	start := time.Now()
	q, err := other.Acquire(ctx, 2)
	require.NoError(t, err)
	testkit.Figure(t, "permits whose session had ended were granted to others after %v", time.Since(start))
	require.Greater(t, q.Token(), p.Token())
	require.NoError(t, q.Release(ctx))

	again, err := s.Acquire(ctx, 1) // over a new session
	require.NoError(t, err)
	require.NoError(t, again.Release(ctx))
}

// On a dead network the holder is told before anybody else is given the permit.
func TestPermit_SilentNetwork(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	s, dsn, _ := openSemaphore(t, 1, ttl)
	far, proxy := through(t, dsn, ttl, 1)
	ctx := testkit.Context(t)
	p, err := far.Acquire(ctx, 1)
	require.NoError(t, err)

	proxy.Stall(true)
	start := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		q, err := s.Acquire(ctx, 1)
		if p.Err() == nil {
			t.Error("granted to another before the holder was told")
		}
		if err == nil {
			err = q.Release(ctx)
		}
		if err != nil {
			t.Error(err)
		}
	})
	<-p.Done()
	require.Equal(t, "lease expired", pgbaton.LossReasonOf(p.Err()))
	wg.Wait()
	testkit.Figure(t, "with TTL %v the permit of a silent network was granted to another after %v", ttl, time.Since(start))
	require.ErrorIs(t, p.Release(ctx), pgbaton.ErrLost)
}

// A release over a dead network says so in time.
func TestPermit_ReleaseOnSilentNetwork(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	_, dsn, _ := openSemaphore(t, 1, ttl)
	far, proxy := through(t, dsn, ttl, 1)
	p, err := far.Acquire(t.Context(), 1)
	require.NoError(t, err)
	proxy.Stall(true)
	start := time.Now()
	require.ErrorIs(t, p.Release(t.Context()), pgbaton.ErrLost)
	testkit.Figure(t, "with TTL %v a release over a silent network returned after %v", ttl, time.Since(start))
}

// The clock of the server is set an hour ahead, seen from the table: nobody is given what is held, and the holder
// goes on.
func TestPermit_ClockSetAhead(t *testing.T) {
	t.Parallel()
	const ttl = 9 * time.Second
	s, dsn, admin := openSemaphore(t, 2, ttl)
	ctx := testkit.Context(t)
	other, err := testclient.New(t, dsn, nil).Semaphore(ctx, "s", 2)
	require.NoError(t, err)
	p, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	pool := testkit.Pool(t, dsn)
	for range testkit.Rounds(5) {
		testkit.Exec(t, admin, "UPDATE pgbaton.slot SET expires_at = expires_at - interval '1 h'")
		_, err = other.TryAcquire(ctx, 2)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.NoError(t, assertPermit(ctx, pool, p))
		free, err := testclient.Available(ctx, other)
		require.NoError(t, err)
		require.Equal(t, 1, free)
		testkit.WaitFor(t, admin, "SELECT NOT overdue AND expires_at > clock_timestamp() FROM pgbaton.slot WHERE holder IS NOT NULL")
	}
	testkit.Exec(t, admin, "UPDATE pgbaton.slot SET expires_at = expires_at - interval '1 h'")
	require.NoError(t, p.Release(ctx))
}

// takenAway are the ways in which a semaphore's slots are lost to another.
var takenAway = map[string]string{
	"claimed": "UPDATE pgbaton.slot SET holder = -5, token = 2 * token",
	"freed":   "UPDATE pgbaton.slot SET holder = NULL, expires_at = NULL",
}

// The server decides: a slot that was claimed by another is lost, though its holder has not heard of it.
func TestPermit_ClaimedByAnother(t *testing.T) {
	t.Parallel()
	const ttl = time.Hour // no renewal tells the holder
	for name, sql := range takenAway {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dsn, _ := openSemaphore(t, 2, ttl)
			ctx := testkit.Context(t)
			pool := testkit.Pool(t, dsn)
			p, err := s.Acquire(ctx, 1)
			require.NoError(t, err)
			require.NoError(t, assertPermit(ctx, pool, p))

			testkit.Run(t, dsn, sql)
			require.ErrorIs(t, assertPermit(ctx, pool, p), pgbaton.ErrStaleToken)
			require.ErrorIs(t, p.Release(ctx), pgbaton.ErrLost)
			err = assertPermit(ctx, pool, p)
			require.True(t, errors.Is(err, pgbaton.ErrNotHeld) || errors.Is(err, pgbaton.ErrLost), "over: %v", err)
		})
	}
}

// The next renewal tells the holder.
func TestPermit_ClaimIsNoticed(t *testing.T) {
	t.Parallel()
	for name, sql := range takenAway {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dsn, _ := openSemaphore(t, 1, 9*time.Second)
			ctx := testkit.Context(t)
			p, err := s.Acquire(ctx, 1)
			require.NoError(t, err)
			testkit.Run(t, dsn, sql)
			<-p.Done()
			require.ErrorIs(t, p.Err(), pgbaton.ErrLost)
			require.ErrorIs(t, assertPermit(ctx, testkit.Pool(t, dsn), p), pgbaton.ErrLost)
		})
	}
}

func assertPermit(ctx context.Context, pool *pgxpool.Pool, p *pgbaton.Permit) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return p.Assert(ctx, tx) })
}

// While a transaction has asserted a permit, nobody is given its slots; the holder goes on renewing and may release.
func TestAssertPermit_KeepsOthersOut(t *testing.T) {
	t.Parallel()
	s, dsn, admin := openSemaphore(t, 1, 0)
	ctx := testkit.Context(t)
	p, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	tx, err := admin.Begin(ctx)
	require.NoError(t, err)
	require.NoError(t, p.Assert(ctx, tx))
	waiting, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	inLine := make(chan error)
	go func() {
		_, err := s.Acquire(waiting, 1)
		inLine <- err
	}()
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, p.Release(ctx))
	require.ErrorIs(t, <-inLine, pgbaton.ErrNotAcquired, "handed over in the process")

	other, err := testclient.New(t, dsn, nil).Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	for _, mine := range []*pgbaton.Semaphore{other, s} {
		_, err = mine.TryAcquire(ctx, 1)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	}
	require.NoError(t, tx.Commit(ctx))
	q, err := other.Acquire(ctx, 1)
	require.NoError(t, err)
	require.NoError(t, q.Release(ctx))
}

// Close frees permits, tells their holders and answers waiters.
func TestSemaphore_Close(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	ctx := testkit.Context(t)
	client, err := pgbaton.Open(ctx, dsn, nil)
	require.NoError(t, err)
	s, err := client.Semaphore(ctx, "s", 2)
	require.NoError(t, err)
	p, err := s.Acquire(ctx, 2)
	require.NoError(t, err)
	waiting := make(chan error)
	go func() {
		_, err := s.Acquire(ctx, 1)
		waiting <- err
	}()
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, client.Close(ctx))
	require.ErrorIs(t, <-waiting, pgbaton.ErrClosed)
	require.Equal(t, "client closed", pgbaton.LossReasonOf(p.Err()))
	require.ErrorIs(t, p.Release(ctx), pgbaton.ErrLost)
	_, err = s.Acquire(ctx, 1)
	require.ErrorIs(t, err, pgbaton.ErrClosed)
	_, err = client.Semaphore(ctx, "s", 2)
	require.ErrorIs(t, err, pgbaton.ErrClosed)

	admin := testkit.Connect(t, dsn)
	require.Zero(t, testkit.Value[int](t, admin, "SELECT count(*) FROM pgbaton.slot WHERE holder IS NOT NULL"))
	require.Eventually(t, func() bool {
		return testkit.Value[int](t, admin, `
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`) == 0
	}, testkit.Patience, 10*time.Millisecond)
}

// A client with two connections has none for semaphores, and says so.
func TestSemaphore_NoRoomForASession(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), &pgbaton.Config{MaxConns: 2})
	_, err := client.Semaphore(t.Context(), "s", 2)
	require.ErrorContains(t, err, "Config.MaxConns is 2")
}

// A session that is lost under a question is not the asker's trouble.
func TestSemaphore_QuestionsSurviveALostSession(t *testing.T) {
	t.Parallel()
	const capacity = 3
	_, dsn, _ := openSemaphore(t, capacity, 0)
	far, proxy := through(t, dsn, 0, capacity)
	for range 20 {
		proxy.Cut() // the client may hear of it before the question or after
		free, err := testclient.Available(t.Context(), far)
		require.NoError(t, err)
		require.Equal(t, capacity, free)
	}
}

// Many slots are renewed by several statements. When one of them fails again and again, the others do not vouch for
// its slots: before another has one, the holder is told.
func TestPermit_PartOfARenewal(t *testing.T) {
	t.Parallel()
	const ttl, capacity = 3 * time.Second, 501
	s, dsn, admin := openSemaphore(t, capacity, ttl)
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	other, err := testclient.New(t, dsn, &pgbaton.Config{TTL: ttl}).Semaphore(ctx, "s", capacity)
	require.NoError(t, err)
	p, err := s.Acquire(ctx, capacity)
	require.NoError(t, err)
	testkit.Exec(t, admin, "BEGIN; SELECT FROM pgbaton.slot WHERE slot = 7 FOR UPDATE")
	var q *pgbaton.Permit
	for ; q == nil; time.Sleep(5 * time.Millisecond) { // as soon as a slot has expired
		q, err = other.TryAcquire(ctx, 1)
		require.NoError(t, ctx.Err(), "%v", err)
	}
	require.ErrorIs(t, p.Err(), pgbaton.ErrLost)
	testkit.Exec(t, admin, "ROLLBACK")
	require.ErrorIs(t, p.Release(ctx), pgbaton.ErrLost)
	require.NoError(t, q.Release(ctx))
}
