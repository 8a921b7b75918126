package lockqueue

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const patience = testkit.Patience

// fixture is a queue with real sessions and a pretended lock manager that takes every turn.
type fixture struct {
	*Queue
	t     *testing.T
	admin *pgx.Conn
	proxy *testkit.Proxy

	mu      sync.Mutex
	wanted  map[advisory.Key]advisory.Mode
	turns   chan advisory.Key
	answer  func(advisory.Key) <-chan bool
	swept   chan []advisory.Key
	reports chan error
}

func open(t *testing.T, ttl time.Duration, conns int) *fixture {
	t.Helper()
	dsn := testkit.Migrated(t)
	proxy, cfg := testkit.Through(t, dsn)
	cfg.RuntimeParams["application_name"] = "lockqueue"
	f := &fixture{
		t: t, admin: testkit.Connect(t, dsn), proxy: proxy,
		wanted: map[advisory.Key]advisory.Mode{}, turns: make(chan advisory.Key, 1000),
		swept: make(chan []advisory.Key, 1000), reports: make(chan error, 1000),
	}
	dialer := &session.Dialer{Config: cfg, TTL: ttl}
	f.Queue = New(Config{
		TTL: ttl, Budget: session.NewBudget(conns),
		Dial:   func(ctx context.Context) (*session.Session, error) { return dialer.Dial(ctx, session.Waiting) },
		Report: func(_ string, err error) { f.reports <- err }, Waiting: f,
	})
	t.Cleanup(f.Close)
	return f
}

func (f *fixture) Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	mode, ok = f.wanted[key]
	return mode, time.Time{}, ok
}

func (f *fixture) Turn(key advisory.Key) <-chan bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answer != nil {
		f.turns <- key
		return f.answer(key)
	}
	if _, ok := f.wanted[key]; ok {
		delete(f.wanted, key)
		f.turns <- key
		f.Leave(key)
	}
	answer := make(chan bool, 1)
	answer <- true
	return answer
}

func (f *fixture) Sweep(keys []advisory.Key) { f.swept <- keys }

func (f *fixture) enter(keys ...advisory.Key) {
	for _, key := range keys {
		f.mu.Lock()
		f.wanted[key] = advisory.Exclusive
		f.mu.Unlock()
		f.Enter(key)
	}
}

func (f *fixture) leave(key advisory.Key) {
	f.mu.Lock()
	delete(f.wanted, key)
	f.mu.Unlock()
	f.Leave(key)
}

// lock has another session hold keys from 0 on, unlock frees them.
func (f *fixture) lock(keys int) {
	_, err := f.admin.Exec(f.t.Context(), "SELECT pg_advisory_lock(k) FROM generate_series(0, $1 - 1) AS k", keys)
	require.NoError(f.t, err)
}

func (f *fixture) unlock() {
	_, err := f.admin.Exec(f.t.Context(), "SELECT pg_advisory_unlock_all()")
	require.NoError(f.t, err)
}

// sessions counts the queue's on the server, queued those that wait for an advisory lock, holding what they hold.
func (f *fixture) sessions() int {
	return testkit.Value[int](f.t, f.admin, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lockqueue' AND datname = current_database()")
}

func (f *fixture) queued() int { return f.locks("NOT granted") }

func (f *fixture) locks(condition string) int {
	return testkit.Value[int](f.t, f.admin, `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE application_name = 'lockqueue' AND datname = current_database() AND locktype = 'advisory' AND `+condition)
}

func (f *fixture) turn() advisory.Key {
	f.t.Helper()
	select {
	case key := <-f.turns:
		return key
	case <-time.After(patience):
		require.Fail(f.t, "no turn")
		return advisory.Key{}
	}
}

func (f *fixture) within(what string, ok func() bool) {
	f.t.Helper()
	require.Eventually(f.t, ok, patience, time.Millisecond, what)
}

// quiet requires that nothing was reported, but that a session or the server was silent for as long as it may be, as on a
// busy machine.
func (f *fixture) quiet() {
	f.t.Helper()
	for len(f.reports) > 0 {
		require.Regexp(f.t, "57P05|timeout", (<-f.reports).Error())
	}
}

func keys(n int) []advisory.Key {
	all := make([]advisory.Key, n)
	for i := range all {
		all[i].ID = int64(i)
	}
	return all
}

func TestQueue_AnnouncesTheTurn(t *testing.T) {
	t.Parallel()
	f := open(t, 4*time.Second, 4)
	f.lock(1)
	f.enter(keys(1)...)
	f.within("it queues", func() bool { return f.queued() == 1 })
	require.Empty(t, f.turns)
	freed := time.Now()
	f.unlock()
	require.Equal(t, advisory.Key{}, f.turn())
	testkit.Figure(t, "a turn was announced %v after the release", time.Since(freed))
	f.within("the gate is free", func() bool { return f.locks("true") == 0 })
	f.within("the idle session is closed", func() bool { return f.sessions() == 0 && f.proxy.Open() == 0 })
	f.quiet()
	f.enter(keys(1)...)
	f.turn()
}

func TestQueue_LeaveCancelsTheWait(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, 4) // a slice is 0.9 s
	f.lock(1)
	fastest := time.Hour
	for range 5 {
		f.enter(keys(1)...)
		f.within("it queues", func() bool { return f.queued() == 1 })
		left := time.Now()
		f.leave(advisory.Key{})
		f.within("the wait is cancelled", func() bool { return f.locks("true") == 0 })
		fastest = min(fastest, time.Since(left))
	}
	testkit.Figure(t, "a wait that nobody wants was cancelled in %v, the best of 5", fastest)
	f.quiet()
	require.LessOrEqual(t, f.sessions(), 1)
}

func TestQueue_MoreKeysThanPlaces(t *testing.T) {
	t.Parallel()
	const count, conns = 12, 4
	f := open(t, 3*time.Second, conns) // a slice is 0.75 s
	f.lock(count)
	f.enter(keys(count)...)
	f.within("all places are used", func() bool { return f.sessions() == conns-1 && f.queued() == conns-1 })
	f.within("the others are swept", func() bool { return len(<-f.swept) == count-(conns-1) })
	f.unlock()
	turns := map[advisory.Key]bool{}
	for range count {
		turns[f.turn()] = true
		require.LessOrEqual(t, f.sessions(), conns-1)
	}
	require.Len(t, turns, count)
	f.within("all sessions are closed", func() bool { return f.sessions() == 0 })
	f.within("no stand is left", func() bool { f.Queue.mu.Lock(); defer f.Queue.mu.Unlock(); return len(f.tickets) == 0 })
	f.quiet()
	for range conns - 1 {
		f.within("no place in the budget is lost", func() bool { return f.cfg.Budget.Take(session.Waiting) })
	}
}

func TestQueue_RotatesWhileKeysStayTaken(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, 2)
	f.lock(4)
	f.enter(keys(4)...)
	seen := map[int64]bool{}
	f.within("each has its slice", func() bool {
		seen[testkit.Value[int64](t, f.admin, `SELECT coalesce(max(objid::int8), 99) FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE application_name = 'lockqueue' AND datname = current_database() AND NOT granted`)] = true
		delete(seen, 99)
		return len(seen) == 4
	})
	require.Equal(t, 1, f.sessions())
}

func TestQueue_DialFailsAndRecovers(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, 4)
	f.proxy.Refuse(true)
	f.enter(keys(1)...)
	for range 3 {
		require.Error(t, <-f.reports)
	}
	require.Less(t, f.proxy.Dialled(), 20, "it backs off")
	f.proxy.Refuse(false)
	f.turn()
	f.lock(1)
	f.enter(keys(1)...)
	f.within("it queues", func() bool { return f.queued() == 1 })
	f.proxy.Cut()
	require.Error(t, <-f.reports)
	f.unlock()
	f.turn()
}

// A turn that nobody uses, because there is no anchor, does not keep others from the gate, nor the queue from
// closing.
func TestQueue_TurnWithoutAnswer(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, 4)
	f.answer = func(advisory.Key) <-chan bool { return make(chan bool) }
	f.enter(keys(1)...)
	f.turn()
	f.within("the gate is free", func() bool { return f.locks("true") == 0 })
	f.turn()
	started := time.Now()
	f.Close()
	testkit.Figure(t, "a queue whose turns nobody answers was closed in %v", time.Since(started))
	f.within("nothing is left", func() bool { return f.sessions() == 0 })
}

func TestQueue_CloseOnADeadNetwork(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, 4)
	f.lock(3)
	f.enter(keys(3)...)
	f.within("they queue", func() bool { return f.queued() == 3 })
	f.proxy.Stall(true)
	started := time.Now()
	f.Close()
	testkit.Figure(t, "a queue on a dead network was closed in %v", time.Since(started))
	f.proxy.Stall(false)
}

func TestQueue_EnterAndLeaveAtRandom(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, 3)
	f.lock(6)
	var group sync.WaitGroup
	for i := range 6 {
		group.Go(func() {
			for n := range testkit.Rounds(60) {
				f.enter(advisory.Key{ID: int64(i)})
				time.Sleep(time.Duration((n*7+i)%11) * time.Millisecond)
				f.leave(advisory.Key{ID: int64(i)})
			}
		})
	}
	group.Wait()
	f.within("nobody waits", func() bool { return f.locks("true") == 0 })
	f.within("all sessions are closed", func() bool { return f.sessions() == 0 })
	require.Empty(t, f.turns)
	f.within("no stand is left", func() bool { f.Queue.mu.Lock(); defer f.Queue.mu.Unlock(); return len(f.tickets) == 0 })
	for len(f.reports) > 0 { // a cancel may hit the moment before the wait has begun, or after it has ended
		require.Regexp(t, "57014|57P05|timeout", (<-f.reports).Error())
	}
}

// A waiting session leaves at once, also from the middle of its slice, for a session that something else needs.
func TestQueue_GivesWay(t *testing.T) {
	t.Parallel()
	const conns = 4
	f := open(t, time.Minute, conns) // a slice is 0.9 s
	f.lock(conns - 1)
	f.enter(keys(conns - 1)...)
	f.within("all places wait", func() bool { return f.queued() == conns-1 })
	asked := time.Now()
	f.within("a place is given up", func() bool {
		if f.cfg.Budget.Take(session.Sidecar) {
			return true
		}
		require.True(t, f.cfg.Budget.Crowded())
		f.GiveWay()
		return false
	})
	testkit.Figure(t, "a place was given up after %v", time.Since(asked))
	f.quiet()
	f.unlock()
	for range conns - 1 {
		f.turn()
	}
}
