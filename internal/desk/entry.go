package desk

import (
	"cmp"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// phase says what the entry waits for. In every phase but idle its seat has, or asks for, the key.
type phase uint8

const (
	idle        phase = iota // the server holds nothing for us
	asking                   // a try is under way
	held                     // the link holds the key; nothing is under way
	checking                 // held, and the server is asked whether another process stands at the gate
	drawing                  // held, and tokens are on their way
	downgrading              // held exclusively, and about to be held shared
	releasing                // an unlock is under way
)

// entry is what the process knows of a key that it holds or wants. Guarded by the desk's mutex.
type entry struct {
	key   advisory.Key
	phase phase
	mode  advisory.Mode // in which it is held or asked for
	seat  *seat         // on which; nil when idle
	op    *link.Op      // the operation under way; at most one
	ownOp link.Op       // what op is, until a link was lost with it

	first, last *waiter // waiters in order of arrival
	queued      int

	owners   *Hold // a list
	owned    int
	leaving  *Hold     // its Release waits for the unlock under way
	shifting *Hold     // its downgrade is under way
	shift    *shift    // that one
	since    time.Time // of the tenure
	passes   int       // hand-overs and joins in it
	stand    bool      // the tenure has ended with others waiting: ask at the gate
	retries  int
	standing bool        // it is in the waiting room
	turn     chan<- bool // the room waits to hear whether the turn was taken
}

// waiter is a goroutine that waits for a grant.
type waiter struct {
	mode       advisory.Mode
	try        bool      // it does not wait for other processes
	ours       bool      // a session of this process stands at the gate for it
	until      time.Time // when its context ends; zero if it has no deadline
	next, prev *waiter

	answered bool          // guarded by the desk's mutex, as the next two until it is set
	hold     Hold          // the grant: one allocation for both
	err      error         // or why there is none
	ch       chan struct{} // gets one value when answered
}

func (e *entry) push(w *waiter) {
	if e.last == nil {
		e.first = w
	} else {
		e.last.next, w.prev = w, e.last
	}
	e.last = w
	e.queued++
}

// unshift puts a waiter before the others.
func (e *entry) unshift(w *waiter) {
	if e.first == nil {
		e.push(w)
		return
	}
	e.first.prev, w.next = w, e.first
	e.first = w
	e.queued++
}

func (e *entry) drop(w *waiter) {
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
	e.queued--
}

// admits says whether a try may join the entry's queue: it then gets its answer from what is under way, or
// from one try of its own. If not, it is refused at once.
func (e *entry) admits(mode advisory.Mode) bool {
	if e.standing {
		return false
	}
	for w := e.first; w != nil; w = w.next {
		if w.mode != advisory.Shared || mode != advisory.Shared {
			return false
		}
	}
	return e.owned == 0 || (e.mode == advisory.Shared && mode == advisory.Shared)
}

// actions are what a step decided to do after the desk's mutex is free.
type actions struct {
	now     time.Time
	ops     []submission
	wake    []*waiter
	lost    []*Hold
	freed   []*Hold
	shifted []*shift
	expire  []*seat
}

// reset makes it ready for another step, and forgets what the last one was about.
func (a *actions) reset() {
	clear(a.ops)
	clear(a.wake)
	clear(a.lost)
	clear(a.freed)
	clear(a.shifted)
	clear(a.expire)
	*a = actions{ops: a.ops[:0], wake: a.wake[:0], lost: a.lost[:0], freed: a.freed[:0], shifted: a.shifted[:0], expire: a.expire[:0]}
}

type submission struct {
	seat *seat
	op   *link.Op
}

// advance takes an entry as far as it goes without an answer from outside. The caller holds the mutex.
func (d *Desk) advance(e *entry, a *actions) {
	switch e.phase {
	case asking, checking, drawing, downgrading, releasing:
	case held:
		d.serve(e, a)
	case idle:
		if e.first == nil {
			d.forget(e)
		} else if !e.standing || e.turn != nil || e.first.try { // see TakeMany
			d.ask(e, a)
		}
	}
}

// serve decides what becomes of a key that is held: it is granted to the next in line, or given back.
func (d *Desk) serve(e *entry, a *actions) {
	for {
		w := e.first
		switch {
		case w == nil || w.mode != e.mode || (e.mode == advisory.Exclusive && e.owned > 0):
			if w == nil {
				d.leave(e)
			}
			if e.owned == 0 {
				d.unlock(e, a)
			} else {
				d.settleTurn(e, false) // it was for others than those who wait now
			}
			return
		case !e.seat.link.Trusted(a.now):
			a.expire = append(a.expire, e.seat)
			return
		case e.turn != nil:
			// The other processes have let those who wait here pass: a new tenure.
			e.since, e.passes = a.now, 0
			d.leave(e)
			d.settleTurn(e, true)
			continue
		case e.passes >= maxPasses || a.now.Sub(e.since) >= tenure:
			if e.owned == 0 {
				d.unlock(e, a)
			} else if !e.standing {
				d.submit(e, a, checking, link.Op{Kind: link.Gate, Mode: e.mode})
			}
			return
		}
		token, ok := e.seat.deal.next()
		if !ok {
			d.submit(e, a, drawing, link.Op{Kind: link.Draw, Want: min(e.queued, maxPasses-e.passes)})
			return
		}
		e.passes++
		d.grant(e, w, token, a)
	}
}

// grant makes a waiter an owner.
func (d *Desk) grant(e *entry, w *waiter, token int64, a *actions) {
	e.drop(w)
	h := &w.hold
	h.desk, h.entry, h.seat, h.mode, h.token, h.ch = d, e, e.seat, w.mode, token, w.ch
	h.next = e.owners
	if h.next != nil {
		h.next.prev = h
	}
	e.owners = h
	e.owned++
	d.answer(w, a)
}

// disown takes a hold out of its entry's owners.
func (e *entry) disown(h *Hold) {
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

func (d *Desk) answer(w *waiter, a *actions) {
	w.answered = true
	a.wake = append(a.wake, w)
}

// refuse answers waiters of an entry with an error: the tries only, or all.
func (d *Desk) refuse(e *entry, err error, triesOnly bool, a *actions) {
	for w := e.first; w != nil; {
		next := w.next
		if w.try || !triesOnly {
			e.drop(w)
			w.err = err
			d.answer(w, a)
		}
		w = next
	}
}

// ask starts a try on a link, for the first in line. Without a link the entry stays idle until there is one.
func (d *Desk) ask(e *entry, a *actions) {
	s := d.pick()
	if s == nil {
		return
	}
	if err := d.limit(s, a); err != nil {
		d.refuse(e, err, false, a)
		d.settleTurn(e, true)
		d.forget(e)
		return
	}
	kind := e.manners()
	e.stand = false
	e.seat, e.mode = s, e.first.mode
	s.held++
	d.claims++
	d.submit(e, a, asking, link.Op{Kind: kind, Mode: e.mode, Want: min(e.queued, maxPasses+1)})
}

// manners says how to ask for the key: with an eye on the gate, at which other processes wait, or without.
func (e *entry) manners() link.Kind {
	switch {
	case e.turn != nil, e.first.ours: // the gate is ours
		return link.Try
	case e.stand:
		return link.TryAtGate
	case e.first.try: // our own place may not have left the gate yet, which must not refuse a try
		return link.Try
	}
	return link.TryPolite
}

// unlock gives the key back. Those who wait have had, or would have passed, their turn: they ask at the gate.
func (d *Desk) unlock(e *entry, a *actions) {
	e.stand = e.first != nil
	d.submit(e, a, releasing, link.Op{Kind: link.Unlock, Mode: e.mode})
}

func (d *Desk) submit(e *entry, a *actions, p phase, op link.Op) {
	e.phase = p
	*e.op = op
	e.op.Key, e.op.Owner = e.key, e
	a.ops = append(a.ops, submission{e.seat, e.op})
}

// vacate makes an entry idle: the server holds nothing for it any more.
func (d *Desk) vacate(e *entry) {
	if e.phase != asking {
		d.held--
	}
	e.seat.held--
	d.claims--
	e.phase, e.seat = idle, nil
}

// forget drops an idle entry that nobody waits for.
func (d *Desk) forget(e *entry) {
	if e.first != nil || e.phase != idle {
		return
	}
	d.leave(e)
	d.settleTurn(e, true)
	delete(d.entries, e.key)
	if e.op == &e.ownOp && len(d.spare) < maxSpare { // no lost link knows it
		*e = entry{}
		d.spare = append(d.spare, e)
	}
}

// maxSpare bounds the entries that are kept for the next keys.
const maxSpare = 1024

// entryFor returns the key's entry, and makes it if there is none.
func (d *Desk) entryFor(key advisory.Key) *entry {
	if e := d.entries[key]; e != nil {
		return e
	}
	var e *entry
	if last := len(d.spare) - 1; last >= 0 {
		e, d.spare = d.spare[last], d.spare[:last]
	} else {
		e = &entry{}
	}
	e.key, e.op = key, &e.ownOp
	d.entries[key] = e
	return e
}

// limit says whether one more lock may be asked for.
func (d *Desk) limit(s *seat, a *actions) error {
	if d.full() {
		return lockerr.Limit(d.most())
	}
	return d.pressure(s, a)
}

// most is how many locks may be held. Tries under way do not count: most of those for keys that others hold
// come back empty. When too many succeed, the last are given back.
func (d *Desk) most() int {
	const tableShare = 8
	return cmp.Or(d.cfg.MaxHeld, d.lockTable/tableShare)
}

func (d *Desk) full() bool { return d.held >= d.most() }
