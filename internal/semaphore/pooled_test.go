package semaphore

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/sidecar"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// fixture is a manager that takes its session for a pooler's.
type fixture struct {
	*Manager
	line    *Line
	sidecar *sidecar.Sidecar
	proxy   *testkit.Proxy
	admin   *pgx.Conn
}

func newFixture(t *testing.T, capacity int, ttl time.Duration) *fixture {
	t.Helper()
	dsn := testkit.Migrated(t)
	proxy, cfg := testkit.Through(t, dsn)
	dialer := &session.Dialer{Config: cfg, TTL: ttl}
	f := &fixture{proxy: proxy, admin: testkit.Connect(t, dsn)}
	f.sidecar = sidecar.New(sidecar.Config{
		TTL: ttl, Name: "me", Pooled: true, Report: func(string, error) {}, Dial: dialer.DialPooled, Hung: func() {},
	})
	f.Manager = New(Config{TTL: ttl, Sidecar: f.sidecar, Pooled: true, Report: func(string, error) {}})
	id := testkit.Value[int32](t, f.admin, "SELECT id FROM pgbaton.open_semaphore('s', $1)", capacity)
	gate := testkit.Value[int64](t, f.admin, "SELECT pgbaton.key('pgbaton/semaphore/s')")
	f.line = f.Line(id, "s", advisory.Key{ID: gate}, capacity)
	t.Cleanup(func() { f.close(context.Background()) })
	return f
}

func (f *fixture) close(ctx context.Context) {
	f.Close(ctx)
	_ = f.sidecar.Close(ctx) // the network may be gone
	f.Wait()
}

// reconnect cuts the session's connection, and waits until there is another session.
func (f *fixture) reconnect(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	old := f.session
	f.mu.Unlock()
	f.proxy.Cut()
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.session != nil && f.session != old
	}, testkit.Patience, time.Millisecond)
}

// A permit outlives the connection: another one renews it.
func TestPooled_PermitSurvivesALostConnection(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, 6*time.Second)
	p, err := f.line.Acquire(t.Context(), 1, false)
	require.NoError(t, err)
	f.reconnect(t)
	time.Sleep(6500 * time.Millisecond) // longer than TTL: it is renewed
	require.NoError(t, p.Err())
	require.NoError(t, p.Release())
}

// Whatever a reconnection frees, it is nothing that was granted after it.
func TestPooled_GrantsAfterALostConnectionAreHeld(t *testing.T) {
	t.Parallel()
	const capacity = 4
	f := newFixture(t, capacity, 6*time.Second)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var granted, missing atomic.Int64
	for range capacity {
		wg.Go(func() {
			for ctx.Err() == nil {
				wait, cancel := context.WithTimeout(ctx, time.Second)
				p, err := f.line.Acquire(wait, 1, false)
				cancel()
				if err != nil {
					continue
				}
				granted.Add(1)
				time.Sleep(3 * time.Millisecond)
				// The network may be gone, but then nobody can say that the server has freed it.
				if err := p.Release(); errors.Is(err, errExpired) {
					missing.Add(1)
				}
			}
		})
	}
	for range testkit.Rounds(20) {
		before := granted.Load()
		require.Eventually(t, func() bool { return granted.Load() > before+5 }, testkit.Patience, time.Millisecond)
		f.proxy.Cut()
	}
	stop()
	wg.Wait()
	require.Zero(t, missing.Load(), "freed behind their holders")
}

// A release that waits for a connection ends with the client.
func TestPooled_ReleaseEndsWithClose(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, time.Hour) // nobody waits for its end
	p, err := f.line.Acquire(t.Context(), 1, false)
	require.NoError(t, err)
	f.proxy.Refuse(true)
	f.proxy.Cut()
	require.Eventually(t, func() bool { return f.sidecar.Current() == nil }, testkit.Patience, time.Millisecond)
	released := make(chan error)
	go func() { released <- p.Release() }()
	time.Sleep(50 * time.Millisecond)
	started := time.Now()
	f.close(t.Context())
	require.ErrorIs(t, <-released, lockerr.Lost)
	testkit.Figure(t, "a release without a connection ended %v after Close", time.Since(started))
}

// Close does not wait for a claim that the server does not answer.
func TestPooled_CloseHeedsItsContext(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, time.Hour) // nobody waits for its end
	held, err := f.line.Acquire(t.Context(), 1, false)
	require.NoError(t, err)
	waiting := make(chan error)
	go func() {
		_, err := f.line.Acquire(t.Context(), 1, false)
		waiting <- err
	}()
	time.Sleep(100 * time.Millisecond) // it has a head
	f.proxy.Stall(true)
	time.Sleep(200 * time.Millisecond) // which has asked
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	started := time.Now()
	f.close(ctx)
	testkit.Figure(t, "with a context of 300 ms a client on a silent network was closed in %v", time.Since(started))
	require.ErrorIs(t, <-waiting, lockerr.Closed)
	require.ErrorIs(t, held.Err(), lockerr.Lost)
}

// Thousands of slots are freed and renewed in parts.
func TestPooled_ManySlots(t *testing.T) {
	t.Parallel()
	const capacity = 1700
	f := newFixture(t, capacity, 12*time.Second)
	p, err := f.line.Acquire(t.Context(), capacity, false)
	require.NoError(t, err)
	time.Sleep(5 * time.Second) // renewed
	require.NoError(t, p.Err())
	require.NoError(t, p.Release())
	require.Zero(t, testkit.Value[int](t, f.admin, "SELECT count(*) FROM pgbaton.slot WHERE holder IS NOT NULL"))
}

// What a client held behind a pooler is free when it has been closed, however much that was.
func TestPooled_CloseFreesEverything(t *testing.T) {
	t.Parallel()
	const capacity = 3000
	f := newFixture(t, capacity, 10*time.Second)
	_, err := f.line.Acquire(t.Context(), capacity, false)
	require.NoError(t, err)
	f.close(t.Context())
	require.Zero(t, testkit.Value[int](t, f.admin, "SELECT count(*) FROM pgbaton.slot WHERE holder IS NOT NULL"))
}

// A claim that is answered when its session has been replaced is granted to nobody: the new one has freed it.
func TestPooled_ClaimToldLate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2, 30*time.Second)
	p, err := f.line.Acquire(t.Context(), 1, false)
	require.NoError(t, err)
	require.NoError(t, p.Release())
	f.mu.Lock()
	old := f.session
	f.line.state = asking
	f.mu.Unlock()
	var slots, token string
	require.NoError(t, f.admin.QueryRow(t.Context(), `SELECT slots::text, token::text
		FROM pgbaton.claim_slots($1, $3, $2, '{1}', 6000, false, 0, true)`, f.line.id, old.holder(), f.line.gate.ID).Scan(&slots, &token))
	sent, w := time.Now(), &waiter{Value: wish{n: 1}}
	w.Init(nil)
	f.mu.Lock()
	var a actions
	require.NoError(t, f.line.enter(w, &a))
	require.Empty(t, a.ops)
	f.mu.Unlock()
	f.reconnect(t)
	c := &claimCall{line: f.line, session: old, waiters: []*waiter{w}}
	c.answered(&sidecar.Op{Sent: sent, Rows: [][][]byte{{nil, []byte("1"), []byte(slots), []byte(token)}}})
	gone := func(*waiter) bool { panic("it waits") }
	require.NoError(t, w.Wait(context.Background(), gone, nil))
	require.NotEqual(t, token, strconv.FormatInt(w.Value.permit.Token(), 10))
	held := testkit.Value[int64](t, f.admin, "SELECT token FROM pgbaton.slot WHERE holder IS NOT NULL")
	require.Equal(t, held, w.Value.permit.Token(), "it was claimed anew")
	require.NoError(t, w.Value.permit.Release())
}

// A wait for more than there is hears so at once, also behind one whose claim is under way.
func TestLine_OverCapacityBehindAClaim(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2, time.Hour)
	p, err := f.line.Acquire(t.Context(), 1, false)
	require.NoError(t, err)
	require.NoError(t, p.Release())
	first, second := &waiter{Value: wish{n: 1}}, &waiter{Value: wish{n: 3}}
	first.Init(nil)
	second.Init(nil)
	var a actions
	f.mu.Lock()
	session := f.session
	f.line.state = asking // a claim is under way
	require.NoError(t, f.line.enter(first, &a))
	require.NoError(t, f.line.enter(second, &a))
	f.mu.Unlock()
	require.Len(t, a.ops, 1, "the capacity is asked for")
	f.run(&a, session, false)
	never := func(*waiter) bool { panic("its context has no end") }
	require.ErrorIs(t, second.Wait(context.Background(), never, nil), lockerr.OverCapacity)
	f.mu.Lock()
	f.line.state = idle
	f.mu.Unlock()
	require.True(t, f.line.abandon(first))
}

// A claim is trusted as its earliest renewal says, when all its parts were answered.
func TestRound(t *testing.T) {
	t.Parallel()
	const span = time.Minute
	start := time.Now()
	whole, parts, broken := &claim{trusted: start}, &claim{trusted: start}, &claim{trusted: start}
	r := round{whole: {parts: 1}, parts: {parts: 3}, broken: {parts: 2}}
	r.answered(whole, start.Add(1), span)
	require.Equal(t, start.Add(1+span), whole.trusted)
	for _, sent := range []time.Duration{5, 3} {
		r.answered(parts, start.Add(sent), span)
		require.Equal(t, start, parts.trusted)
	}
	r.answered(parts, start.Add(4), span)
	require.Equal(t, start.Add(3+span), parts.trusted)
	r.answered(broken, start.Add(1), span)
	delete(r, broken) // the other failed
	r.answered(broken, start.Add(1), span)
	require.Equal(t, start, broken.trusted)
}

// On a dead network the permit is over before the slot can be claimed by others. Nothing else says so: the end of the
// connection does not matter behind a pooler.
func TestPooled_SilentNetwork(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, 4*time.Second)
	p, err := f.line.Acquire(t.Context(), 1, false)
	require.NoError(t, err)
	f.proxy.Stall(true)
	<-p.Done()
	expires := testkit.Value[time.Time](t, f.admin, "SELECT expires_at FROM pgbaton.slot")
	f.mu.Lock()
	trusted := p.claim.trusted
	f.mu.Unlock()
	require.True(t, trusted.Before(expires), "told too late: %v, %v", trusted, expires)
	require.ErrorIs(t, p.Err(), lockerr.Lost)
	f.proxy.Stall(false)
}

// Behind a pooler no session can vouch for the token sequence, so every claim looks whether it can be trusted.
func TestPooled_TokensAreLookedAfter(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1, 4*time.Second)
	var last int64
	for range 3 {
		p, err := f.line.Acquire(t.Context(), 1, false)
		require.NoError(t, err)
		require.Greater(t, p.Token(), last)
		last = p.Token()
		require.NoError(t, p.Release())
		testkit.Exec(t, f.admin, "DELETE FROM pgbaton.incarnation; SELECT setval('pgbaton.token', 32)") // as after a crash
	}
}

// After an event that cannot come no permit of the line is trusted, the slots go back, and the service goes on.
func TestLine_EventThatCannotCome(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 2, time.Hour)
	var reports []error
	f.cfg.Report = func(_ string, err error) { reports = append(reports, err) }
	p, err := f.line.Acquire(t.Context(), 2, false)
	require.NoError(t, err)
	f.line.note(served)
	require.Len(t, reports, 1)
	require.EqualError(t, reports[0], `the line of "s" met event 1 in state 0`)
	require.ErrorIs(t, p.Reason(), lockerr.Lost)
	require.ErrorIs(t, p.Reason(), reports[0])
	var loss *lockerr.LossError
	require.ErrorAs(t, p.Release(), &loss)
	require.Equal(t, lockerr.Defect, loss.Reason)
	next, err := f.line.Acquire(t.Context(), 2, false)
	require.NoError(t, err)
	require.Greater(t, next.Token(), p.Token())
	require.NoError(t, next.Release())
}
