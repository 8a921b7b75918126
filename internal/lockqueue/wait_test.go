package lockqueue

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// ready waits for a wait's turn.
func (f *fixture) ready(p *Wait) {
	f.t.Helper()
	select {
	case <-p.Ready():
		require.NoError(f.t, p.Err())
	case <-time.After(patience):
		require.Fail(f.t, "no turn")
	}
}

// unlockKey has the session that holds keys free one of them.
func (f *fixture) unlockKey(key int) {
	require.True(f.t, testkit.Value[bool](f.t, f.admin, "SELECT pg_advisory_unlock($1)", key))
}

// gather makes a wait for the keys from 0 on.
func (f *fixture) gather(n int) *Wait {
	p := f.Gather(keys(n))
	f.t.Cleanup(p.Leave)
	return p
}

func (f *fixture) holds(locks int) {
	f.t.Helper()
	f.within("what the queue's sessions hold", func() bool { return f.locks("granted") == locks })
}

// A wait gathers the keys as they are released. In its turn it has the gates alone, until it leaves.
func TestWait_GathersKeys(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, 4)
	f.lock(3)
	p := f.gather(3)
	for key := range 3 {
		f.holds(1 + 2*key) // the keys before, their gates and the next one
		f.within("the owner knows", func() bool { got, known := p.Got(); return known && got == key })
		require.False(t, p.Held())
		f.unlockKey(key)
	}
	f.ready(p)
	require.True(t, p.Held())
	require.Equal(t, 3, f.locks("granted"), "the gates")
	f.lock(2) // somebody passes by
	p.Again()
	f.holds(4 - 1) // the gates; the first key is taken
	f.unlock()
	f.ready(p)
	p.Leave()
	f.holds(0)
	f.quiet()
	f.within("no wait is left", func() bool { f.Queue.mu.Lock(); defer f.Queue.mu.Unlock(); return len(f.waits) == 0 })
}

// A turn that nobody uses is over within a second: the gates go to others. The owner gets another one when it asks.
func TestWait_TurnIsLost(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, 4)
	p := f.gather(2)
	f.ready(p)
	began := time.Now()
	f.holds(0)
	testkit.Figure(t, "a turn that nobody uses was over after %v", time.Since(began))
	require.False(t, p.Held())
	p.Again()
	f.ready(p)
	require.True(t, p.Held())
}

// A turn at a gate goes on as long as its owner wants, though the server ends sessions that are silent for a second.
func TestWait_StandsAtAGate(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, 4)
	gate := advisory.Key{ID: 77}
	p, next := f.AtGate(gate), f.AtGate(gate)
	defer p.Leave()
	defer next.Leave()
	first, second := p, next
	select {
	case <-p.Ready():
	case <-next.Ready():
		first, second = next, p
	}
	time.Sleep(3 * time.Second)
	require.True(t, first.Held())
	require.False(t, second.Held())
	require.Equal(t, 1, f.locks("granted"))
	first.Pass()
	f.ready(second)
	second.Park()
	f.ready(first)
	first.Pass()
	f.ready(first)
	time.Sleep(100 * time.Millisecond)
	require.False(t, second.Held(), "it is away")
	first.Leave()
	second.Again()
	f.ready(second)
	f.quiet()
}

// Posts give way to others when the sessions are too few, and come back.
func TestWait_Rotates(t *testing.T) {
	t.Parallel()
	f := open(t, 3*time.Second, 2) // one place
	gate := f.AtGate(advisory.Key{ID: 77})
	defer gate.Leave()
	f.ready(gate)
	f.lock(2)
	f.enter(advisory.Key{ID: 1})
	f.within("the key has the place", func() bool { return f.queued() == 1 && !gate.Placed() })
	f.ready(gate)
	set := f.gather(2)
	f.within("the set has the place", func() bool { _, known := set.Got(); return known })
	f.ready(gate)
	f.unlock()
	f.ready(set)
	set.Leave()
	require.Equal(t, advisory.Key{ID: 1}, f.turn())
	require.Equal(t, 1, f.sessions())
	f.quiet()
}

// More sets than sessions, whose keys are released late: each has its session for longer the next time, so all get
// their turns in the end.
func TestWait_NoSetStarves(t *testing.T) {
	t.Parallel()
	const sets = 5
	f := open(t, 3*time.Second, 2)
	f.lock(2 * sets)
	var waits []*Wait
	for i := range sets {
		waits = append(waits, f.Gather([]advisory.Key{{ID: int64(2 * i)}, {ID: int64(2*i + 1)}}))
	}
	f.within("each has its time", func() bool {
		f.Queue.mu.Lock()
		defer f.Queue.mu.Unlock()
		for _, p := range waits {
			if p.rounds == 0 {
				return false
			}
		}
		return true
	})
	f.unlock()
	for _, p := range waits {
		f.ready(p)
		p.Leave()
	}
}

// Whenever the session of a wait is ended, nothing is left behind, and the wait starts anew.
func TestWait_KilledAtEveryStep(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, 4)
	kill := func() {
		pid := testkit.Value[int](t, f.admin, `SELECT min(pid) FROM pg_stat_activity
			WHERE application_name = 'lockqueue' AND datname = current_database()`)
		testkit.Value[bool](t, f.admin, "SELECT pg_terminate_backend($1)", pid)
		require.Error(t, <-f.reports)
	}
	f.lock(3)
	p := f.gather(3)
	for key := range 3 {
		f.within("it waits", func() bool { return f.queued() == 1 && f.locks("granted") == 1+2*key })
		kill()
		f.within("it waits again", func() bool { return f.queued() == 1 && f.locks("granted") == 1+2*key })
		f.unlockKey(key)
	}
	f.ready(p)
	kill()
	p.Again()
	f.ready(p)
	p.Leave()
	f.holds(0)
}

// A wait leaves for a session that something else needs.
func TestWait_GivesWay(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute, 4)
	var waits []*Wait
	for i := range 3 {
		waits = append(waits, f.AtGate(advisory.Key{ID: int64(70 + i)}))
		f.ready(waits[i])
	}
	f.within("a place is given up", func() bool {
		if f.cfg.Budget.Take(session.Sidecar) {
			return true
		}
		require.True(t, f.cfg.Budget.Crowded())
		f.GiveWay()
		return false
	})
	for _, p := range waits {
		p.Leave()
	}
	f.holds(0)
	f.quiet()
}
