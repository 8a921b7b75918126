package lockmgr

import (
	"cmp"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// keyState is what the process knows of a key that it holds or wants. Guarded by the manager's mutex.
type keyState struct {
	key   advisory.Key
	state state
	queue queueState
	mode  advisory.Mode // in which it is held or asked for

	anchor  engine.Anchor   // at which; nil when idle
	request *engine.Request // the one under way; at most one
	own     engine.Request  // what request is, until an anchor was lost with it
	tokens  engine.Tokens   // for the next grants, drawn since the server granted the key

	first, last *waiter // waiters in order of arrival
	inLine      int

	owners  *Hold // a list
	owned   int
	leaving *Hold     // its Release waits for the unlock under way
	since   time.Time // of the tenure
	passes  int       // hand-overs and joins in it
	behind  bool      // the tenure has ended with others waiting: ask behind other processes
	retries int
	turn    chan<- bool // on which the engine wants to hear whether the turn was taken; nil but at a turn
}

// waiter is a goroutine that waits for a grant.
type waiter struct {
	mode       advisory.Mode
	try        bool      // it does not wait for other processes
	ours       bool      // the engine has a turn for it
	until      time.Time // when its context ends; zero if it has no deadline
	next, prev *waiter

	answered bool          // guarded by the manager's mutex, as the next two until it is set
	hold     Hold          // the grant: one allocation for both
	err      error         // or why there is none
	ch       chan struct{} // gets one value when answered
}

func (e *keyState) push(w *waiter) {
	if e.last == nil {
		e.first = w
	} else {
		e.last.next, w.prev = w, e.last
	}
	e.last = w
	e.inLine++
}

// unshift puts a waiter before the others.
func (e *keyState) unshift(w *waiter) {
	if e.first == nil {
		e.push(w)
		return
	}
	e.first.prev, w.next = w, e.first
	e.first = w
	e.inLine++
}

func (e *keyState) drop(w *waiter) {
	if w.prev == nil {
		e.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		e.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
	e.inLine--
}

// admits reports whether a try may join the key's line: it then gets its answer from what is under way, or
// from one try of its own. If not, it is refused at once.
func (e *keyState) admits(mode advisory.Mode) bool {
	if e.queue != unqueued {
		return false
	}
	for w := e.first; w != nil; w = w.next {
		if w.mode != advisory.Shared || mode != advisory.Shared {
			return false
		}
	}
	return e.owned == 0 || (e.mode == advisory.Shared && mode == advisory.Shared)
}

// actions are what a step decided to do after the manager's mutex is free.
type actions struct {
	now      time.Time
	requests []*engine.Request
	anchors  []engine.Anchor // of the requests
	wake     []*waiter
	lost     []*Hold // whose cause is set
	freed    []*Hold
	expire   []engine.Anchor
}

// reset makes it ready for another step, and forgets what the last one was about.
func (a *actions) reset() {
	clear(a.requests)
	clear(a.anchors)
	clear(a.wake)
	clear(a.lost)
	clear(a.freed)
	clear(a.expire)
	*a = actions{
		requests: a.requests[:0], anchors: a.anchors[:0],
		wake: a.wake[:0], lost: a.lost[:0], freed: a.freed[:0], expire: a.expire[:0],
	}
}

// advance takes a key as far as it goes without an answer from outside. The caller holds the mutex.
func (m *Manager) advance(e *keyState, a *actions) {
	switch e.state { // the others wait for an answer
	case held:
		m.serve(e, a)
	case idle:
		if e.first == nil {
			m.forget(e)
		} else if e.queue != inQueue || e.first.try { // see TakeMany
			m.ask(e, a)
		}
	}
}

// serve decides what becomes of a key that is held: it is granted to the next in line, or given back.
func (m *Manager) serve(e *keyState, a *actions) {
	for {
		w := e.first
		switch {
		case w == nil || w.mode != e.mode || (e.mode == advisory.Exclusive && e.owned > 0):
			if w == nil {
				m.queueHears(e, needless, nil)
			}
			if e.owned == 0 {
				m.unlock(e, a)
			} else {
				m.queueHears(e, turnMissed, nil) // it was for others than those who wait now
			}
			return
		case !e.anchor.Trusted(a.now):
			a.expire = append(a.expire, e.anchor)
			return
		case e.queue == atTurn:
			// The other processes have let those who wait here pass: a new tenure.
			e.since, e.passes = a.now, 0
			m.queueHears(e, needless, nil)
			continue
		case e.passes >= maxPasses || a.now.Sub(e.since) >= tenure:
			if e.owned == 0 {
				m.unlock(e, a)
			} else if e.queue == unqueued {
				m.happens(e, overdue, a)
			}
			return
		}
		token, ok := e.tokens.Next()
		if !ok {
			m.happens(e, tokensOut, a)
			e.request.Want = min(e.inLine, maxPasses-e.passes)
			return
		}
		e.passes++
		m.grant(e, w, token, a)
	}
}

// grant makes a waiter an owner.
func (m *Manager) grant(e *keyState, w *waiter, token int64, a *actions) {
	e.drop(w)
	h := &w.hold
	h.manager, h.key, h.anchor, h.mode, h.token, h.ch = m, e, e.anchor, w.mode, token, w.ch
	h.next = e.owners
	if h.next != nil {
		h.next.prev = h
	}
	e.owners = h
	e.owned++
	m.answer(w, a)
}

// disown takes a hold out of its key's owners.
func (e *keyState) disown(h *Hold) {
	if h.prev == nil {
		e.owners = h.next
	} else {
		h.prev.next = h.next
	}
	if h.next != nil {
		h.next.prev = h.prev
	}
	h.next, h.prev = nil, nil
	e.owned--
}

func (m *Manager) answer(w *waiter, a *actions) {
	w.answered = true
	a.wake = append(a.wake, w)
}

// refuse answers waiters of a key with an error: the tries only, or all.
func (m *Manager) refuse(e *keyState, err error, triesOnly bool, a *actions) {
	for w := e.first; w != nil; {
		next := w.next
		if w.try || !triesOnly {
			e.drop(w)
			w.err = err
			m.answer(w, a)
		}
		w = next
	}
}

// ask starts to acquire a key for the first in line. Without an anchor the key stays idle until there is one.
func (m *Manager) ask(e *keyState, a *actions) {
	var err error
	var anchor engine.Anchor
	if m.full() {
		err = lockerr.Limit(m.most())
	} else {
		anchor, err = m.engine.Pick(a.now)
	}
	switch {
	case err != nil:
		m.refuse(e, err, false, a)
		m.forget(e)
		return
	case anchor == nil:
		return
	}
	manners := e.manners()
	e.behind = false
	e.anchor, e.mode = anchor, e.first.mode
	m.happens(e, wanted, a)
	e.request.Manners, e.request.Want = manners, min(e.inLine, maxPasses+1)
}

// manners returns how to ask for the key: with an eye on the other processes that wait, or without.
func (e *keyState) manners() engine.Manners {
	switch {
	case e.queue == atTurn, e.first.ours: // no other process comes before this one
		return engine.Barge
	case e.behind:
		return engine.Behind
	case e.first.try: // who has just waited for this process may still be in the queue, which must not refuse a try
		return engine.Barge
	}
	return engine.Polite
}

// unlock gives the key back. Those who wait have had, or would have passed, their turn: they ask behind others.
func (m *Manager) unlock(e *keyState, a *actions) {
	e.behind = e.first != nil
	m.happens(e, unwanted, a)
}

// forget drops an idle key that nobody waits for.
func (m *Manager) forget(e *keyState) {
	if e.first != nil || e.state != idle {
		return
	}
	m.queueHears(e, needless, nil)
	delete(m.keys, e.key)
	if e.request == &e.own && len(m.spare) < maxSpare { // no lost anchor knows it
		*e = keyState{}
		m.spare = append(m.spare, e)
	}
}

// maxSpare bounds the states that are kept for the next keys.
const maxSpare = 1024

// state returns the key's state, and makes it if there is none.
func (m *Manager) state(key advisory.Key) *keyState {
	if e := m.keys[key]; e != nil {
		return e
	}
	var e *keyState
	if last := len(m.spare) - 1; last >= 0 {
		e, m.spare = m.spare[last], m.spare[:last]
	} else {
		e = &keyState{}
	}
	e.key = key
	e.renew(&e.own)
	m.keys[key] = e
	return e
}

// renew gives the key a request of its own.
func (e *keyState) renew(request *engine.Request) {
	e.request = request
	e.request.Key, e.request.Owner = e.key, e
}

// most returns how many keys may be held. Those that are being asked for do not count: most of those that others hold
// come back empty. When too many succeed, the last are given back.
func (m *Manager) most() int { return cmp.Or(m.maxHeld, m.engine.Capacity()) }

func (m *Manager) full() bool { return m.held >= m.most() }
