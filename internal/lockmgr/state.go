package lockmgr

import (
	"cmp"
	"context"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/waitline"
)

// keyState is what the process knows of a key that it holds or wants. Guarded by the manager's mutex.
type keyState struct {
	key   advisory.Key
	name  string // as the last request had it
	state state
	queue queueState
	mode  advisory.Mode // in which it is held or asked for

	anchor  engine.Anchor   // at which; nil when idle
	request *engine.Request // the one under way; at most one
	own     engine.Request  // what request is, until an anchor was lost with it
	tokens  engine.Tokens   // for the next grants, drawn since the server granted the key

	waiters waitline.Line[wish]

	owners  *Hold // a list
	owned   int
	leaving *Hold     // its Release waits for the unlock under way
	since   time.Time // of the tenure
	passes  int       // hand-overs and joins in it
	behind  bool      // the tenure has ended with others waiting: ask behind other processes
	retries int
	turn    chan<- bool // on which the engine wants to hear whether the turn was taken; nil but at a turn
}

// wish is what a waiter wants, and its grant: one allocation for both.
type wish struct {
	try     bool      // it does not wait for other processes
	ours    bool      // the engine has a turn for it
	watched bool      // see [Pending.Watched]
	here    bool      // when it was abandoned, this process had the key
	until   time.Time // when its context ends; zero if it has no deadline
	hold    Hold      // of the key and in the mode that are wanted
}

type waiter = waitline.Waiter[wish]

// newWaiter makes a waiter, with a signal from the pool. The signal goes back with the error of the wait, or with the release of the
// hold, which uses it as well.
func (m *Manager) newWaiter(ctx context.Context, mode advisory.Mode, try, ours bool) *waiter {
	signal := m.signals.Get().(chan struct{}) //nolint:forcetypeassert // there is nothing else in it
	w := &waiter{Value: wish{try: try, ours: ours, hold: Hold{manager: m, mode: mode, ch: signal}}}
	w.Value.until, _ = ctx.Deadline()
	w.Init(signal)
	return w
}

// enter puts a waiter into its key's line, or returns why not. The caller holds the mutex.
func (m *Manager) enter(key advisory.Named, w *waiter, a *actions) error {
	if m.closed {
		return lockerr.Closed
	}
	e, mode := m.state(key.Key), w.Value.hold.mode
	e.name, w.Value.hold.use = key.Name, key.Use
	if w.Value.try && !e.admits(&w.Value) {
		if e.owned > 0 {
			return lockerr.HeldHere
		}
		return lockerr.NotAcquired
	}
	w.Value.hold.key = e
	if w.Value.ours {
		if first := e.waiters.First(); first != nil && (mode == advisory.Exclusive || first.Value.hold.mode == advisory.Exclusive) {
			m.refuse(e, lockerr.NotAcquired, true, a) // else a try would wait behind a holder
		}
		e.waiters.PushFront(w)
	} else {
		e.waiters.Push(w)
	}
	m.advance(e, a)
	return nil
}

// admits reports whether a try may join the key's line: it then gets its answer from what is under way, or
// from one try of its own. If not, it is refused at once. A try for which the engine has a turn may join unless this process
// has the key.
func (e *keyState) admits(try *wish) bool {
	mode := try.hold.mode
	switch {
	case try.ours && !e.state.counts():
		return true
	case e.queue != unqueued:
		return false
	}
	for w := range e.waiters.All() {
		if w.Value.hold.mode != advisory.Shared || mode != advisory.Shared {
			return false
		}
	}
	return e.owned == 0 || (e.mode == advisory.Shared && mode == advisory.Shared)
}

// actions are what a step decided to do after the manager's mutex is free. Each field has its place in reset and in
// [Manager.run].
type actions struct {
	now      time.Time
	requests []*engine.Request
	anchors  []engine.Anchor // of the requests
	wake     []*waiter
	lost     []*Hold // whose cause is set
	freed    []*Hold
	expire   []engine.Anchor
	defects  []defect
}

// defect is an event that cannot come in a state; see the package's first table.
type defect struct {
	anchor engine.Anchor // of the key; nil if it is idle
	what   error
}

// reset makes it ready for another step, and forgets what the last one was about.
func (a *actions) reset() {
	clear(a.requests)
	clear(a.anchors)
	clear(a.wake)
	clear(a.lost)
	clear(a.freed)
	clear(a.expire)
	clear(a.defects)
	*a = actions{
		requests: a.requests[:0], anchors: a.anchors[:0],
		wake: a.wake[:0], lost: a.lost[:0], freed: a.freed[:0], expire: a.expire[:0], defects: a.defects[:0],
	}
}

// advance takes a key as far as it goes without an answer from outside. The caller holds the mutex.
func (m *Manager) advance(e *keyState, a *actions) {
	switch e.state { // the others wait for an answer
	case held:
		m.serve(e, a)
	case idle:
		if first := e.waiters.First(); first == nil {
			m.forget(e)
		} else if e.queue != inQueue || first.Value.try { // see TakeMany
			m.ask(e, a)
		}
	}
}

// serve decides what becomes of a key that is held: it is granted to the next in line, or given back.
func (m *Manager) serve(e *keyState, a *actions) {
	for {
		w := e.waiters.First()
		switch {
		case w == nil || w.Value.hold.mode != e.mode || (e.mode == advisory.Exclusive && e.owned > 0):
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
			e.request.Want = min(e.waiters.Len(), maxPasses-e.passes)
			return
		}
		e.passes++
		m.grant(e, w, token, a)
	}
}

// grant makes a waiter an owner.
func (m *Manager) grant(e *keyState, w *waiter, token int64, a *actions) {
	h := &w.Value.hold
	h.anchor, h.token = e.anchor, token
	h.next = e.owners
	if h.next != nil {
		h.next.prev = h
	}
	e.owners = h
	e.owned++
	e.answer(w, nil, a)
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

// answer takes a waiter out of the line, with a grant if err is nil.
func (e *keyState) answer(w *waiter, err error, a *actions) {
	e.waiters.Answer(w, err)
	a.wake = append(a.wake, w)
}

// refuse answers waiters of a key with an error: the tries only, or all.
func (m *Manager) refuse(e *keyState, err error, triesOnly bool, a *actions) {
	for w := range e.waiters.All() {
		if w.Value.try || !triesOnly {
			e.answer(w, err, a)
		}
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
	e.anchor, e.mode = anchor, e.waiters.First().Value.hold.mode
	m.happens(e, wanted, a)
	e.request.Manners, e.request.Want = manners, min(e.waiters.Len(), maxPasses+1)
}

// manners returns how to ask for the key: with an eye on the other processes that wait, or without.
func (e *keyState) manners() engine.Manners {
	switch first := &e.waiters.First().Value; {
	case e.queue == atTurn, first.ours: // no other process comes before this one
		return engine.Barge
	case e.behind:
		return engine.Behind
	case first.try: // who has just waited for this process may still be in the queue, which must not refuse a try
		return engine.Barge
	}
	return engine.Polite
}

// unlock gives the key back. Those who wait have had, or would have passed, their turn: they ask behind others.
func (m *Manager) unlock(e *keyState, a *actions) {
	e.behind = e.waiters.Len() > 0
	m.happens(e, unwanted, a)
}

// forget drops an idle key that nobody waits for.
func (m *Manager) forget(e *keyState) {
	if e.waiters.Len() > 0 || e.state != idle {
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
