package lockmgr

import (
	"errors"
	"fmt"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Answer implements [engine.Manager].
func (m *Manager) Answer(requests []*engine.Request) {
	a := m.step()
	m.mu.Lock()
	for _, r := range requests {
		if e, ok := r.Owner.(*keyState); ok && e.request == r { // else the answer comes after the loss of the anchor
			m.answered(e, r, a)
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
}

// answered takes the answer to a key's request.
func (m *Manager) answered(e *keyState, r *engine.Request, a *actions) {
	switch r.Verb {
	case engine.Acquire:
		m.tried(e, r, a)
		return
	case engine.Release:
		if h := e.leaving; h != nil {
			e.leaving = nil
			if !r.OK {
				h.result = lost(errNotThere)
			}
			a.freed = append(a.freed, h)
		}
		m.happens(e, freed, a)
	case engine.Yield:
		m.happens(e, answered, a)
		if r.Err == nil && r.OK {
			e.since, e.passes = a.now, 0
		} else {
			m.refuse(e, lockerr.NotAcquired, true, a)
			if e.waiters.Len() > 0 {
				m.queueHears(e, taken, nil)
			}
		}
	case engine.Draw:
		m.happens(e, answered, a)
		if r.Err == nil {
			e.tokens, e.retries = r.Tokens, 0
		} else if !e.again(r) {
			m.refuse(e, r.Err, false, a)
		}
	}
	m.advance(e, a)
}

var errNotThere = &lockerr.LossError{
	Reason: lockerr.NotThere, Cause: errors.New("the server says that its session did not hold the lock"),
}

// again reports whether to submit a request that was cut off from outside once more.
func (e *keyState) again(r *engine.Request) bool {
	const maxRetries = 3
	e.retries++
	return r.Retry && e.retries <= maxRetries
}

// tried takes the answer to a try.
func (m *Manager) tried(e *keyState, r *engine.Request, a *actions) {
	switch {
	case r.OK:
		m.happens(e, granted, a)
		e.tokens = r.Tokens
		e.since, e.passes, e.retries = a.now, -1, 0 // the first grant is no hand-over
		if m.held > m.most() {                      // many were asked for at once
			m.refuse(e, lockerr.Limit(m.most()), false, a)
		}
		m.queueHears(e, needless, nil)
	case r.Err != nil:
		m.happens(e, denied, a)
		if !e.again(r) {
			e.retries = 0
			m.refuse(e, r.Err, false, a)
		}
	default:
		m.happens(e, denied, a)
		m.refuse(e, lockerr.NotAcquired, true, a)
		if e.waiters.Len() > 0 {
			m.queueHears(e, taken, nil)
		}
		m.queueHears(e, turnMissed, nil)
	}
	m.advance(e, a)
}

// Lost implements [engine.Manager].
func (m *Manager) Lost(anchor engine.Anchor, cause error, keys ...advisory.Key) {
	a := m.step()
	m.mu.Lock()
	if len(keys) > 0 {
		for _, key := range keys {
			if e := m.keys[key]; e != nil && e.anchor == anchor {
				m.lose(e, cause, a)
			}
		}
	} else {
		for _, e := range m.keys {
			if e.anchor == anchor {
				m.lose(e, cause, a)
			}
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
}

// lose takes a key off its anchor, which has lost it; those who wait ask again elsewhere.
func (m *Manager) lose(e *keyState, cause error, a *actions) {
	for e.owners != nil {
		h := e.owners
		e.disown(h)
		h.cause = cause
		a.lost = append(a.lost, h)
	}
	if h := e.leaving; h != nil {
		e.leaving = nil
		h.result = lost(cause)
		a.freed = append(a.freed, h)
	}
	m.happens(e, anchorLost, a)
	e.renew(new(engine.Request)) // the lost anchor may still be busy with the old one
	m.advance(e, a)
}

// Ready implements [engine.Manager].
func (m *Manager) Ready() {
	a := m.step()
	m.mu.Lock()
	m.down = nil
	for _, e := range m.keys {
		if e.state == idle {
			m.advance(e, a)
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
}

// Down implements [engine.Manager]: the tries that wait for an anchor are told that there is none. If the database has another engine
// the waiters are told as well: no time brings an anchor, but a change of the record or a restart.
func (m *Manager) Down(err error) {
	a := m.step()
	triesOnly := !errors.Is(err, lockerr.Engine)
	m.mu.Lock()
	m.down = err
	for _, e := range m.keys {
		if e.state == idle {
			m.refuse(e, fmt.Errorf("%w: %w", lockerr.NotAcquired, lockerr.NoConnection(err)), triesOnly, a)
			m.forget(e)
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
}
