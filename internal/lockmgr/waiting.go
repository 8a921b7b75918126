package lockmgr

import (
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// Gather has the engine wait for several keys; nil if it waits for one at a time. See [engine.Gatherer].
func (m *Manager) Gather(keys []advisory.Key) engine.Gathering {
	if gatherer, ok := m.engine.(engine.Gatherer); ok {
		return gatherer.Gather(keys)
	}
	return nil
}

// Closing returns a channel that is closed when the manager is closed: nobody has a turn any longer.
func (m *Manager) Closing() <-chan struct{} { return m.engine.Closing() }

// Need implements [engine.Waiting].
func (m *Manager) Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.keys[key]
	if e == nil || e.queue == unqueued || e.waiters.Len() == 0 || e.state == asking {
		return 0, time.Time{}, false
	}
	mode = e.waiters.First().Value.hold.mode
	for w := range e.waiters.All() {
		if w.Value.until.IsZero() {
			return mode, time.Time{}, true
		}
		if w.Value.until.After(until) {
			until = w.Value.until
		}
	}
	return mode, until, true
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
		if e := m.keys[key]; e != nil && e.queue != unqueued && e.state == idle && e.waiters.Len() > 0 {
			m.ask(e, a)
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
}
