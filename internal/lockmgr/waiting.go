package lockmgr

import (
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// Gather has the engine wait for several keys; see [engine.Engine].
func (m *Manager) Gather(keys []advisory.Key) engine.Gathering { return m.engine.Gather(keys) }

// Closing returns a channel that is closed when the manager is closed: nobody has a turn any longer.
func (m *Manager) Closing() <-chan struct{} { return m.engine.Closing() }

// Need implements [engine.Waiting].
func (m *Manager) Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.keys[key]
	if e == nil || e.queue == unqueued || e.first == nil || e.state == asking {
		return 0, time.Time{}, false
	}
	for w := e.first; w != nil; w = w.next {
		if w.until.IsZero() {
			return e.first.mode, time.Time{}, true
		}
		if w.until.After(until) {
			until = w.until
		}
	}
	return e.first.mode, until, true
}

// Turn implements [engine.Waiting].
func (m *Manager) Turn(key advisory.Key) <-chan bool {
	answer := make(chan bool, 1)
	a := m.step()
	m.mu.Lock()
	e := m.keys[key]
	if e == nil {
		answer <- true
	} else {
		m.queueHears(e, turnCame, answer)
		m.advance(e, a)
	}
	m.mu.Unlock()
	m.run(a, nil)
	return answer
}

// Sweep implements [engine.Waiting].
func (m *Manager) Sweep(keys []advisory.Key) {
	a := m.step()
	m.mu.Lock()
	for _, key := range keys {
		if m.full() {
			break // they go on waiting: most of these tries would only find the key taken
		}
		if e := m.keys[key]; e != nil && e.queue != unqueued && e.state == idle && e.first != nil {
			m.ask(e, a)
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
}
