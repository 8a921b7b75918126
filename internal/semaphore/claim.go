package semaphore

import (
	"errors"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
	"github.com/pgbaton/pgbaton/internal/trust"
)

// claim is the slots that one statement has claimed. Guarded by the manager's mutex.
type claim struct {
	line      *Line
	semaphore int32      // the id by which it was claimed
	session   connection // that claimed or, behind a pooler, last renewed it
	holder    int64
	base      int64 // the first of its tokens
	used      int64 // tokens that were given out
	since     time.Time
	trusted   time.Time // until then
	owners    map[int32]*Permit
	lost      error // why it is gone; nil while it is not
}

// claimCall is a statement under way that claims.
type claimCall struct {
	line      *Line
	semaphore int32 // the id then
	session   connection
	waiters   []*waiter  // that it asks for
	answer    chan<- int // for the head: how many were granted
}

var stmtClaim = pipeline.Statement{
	Name: "pgbaton_claim", SQL: "SELECT * FROM pgbaton.claim_slots($1, $2, $3, $4, $5, $6, $7, $8)",
}

// claim asks for the slots that the first in line want; for the head it gives the answer.
func (l *Line) claim(a *actions, answer chan<- int) {
	m := l.manager
	c := &claimCall{line: l, semaphore: l.id, session: m.session, answer: answer}
	wants, total := make([]int32, 0, 1), 0
	for w := l.waiters.First(); w != nil; w = w.Next() {
		// The first is asked for even if it wants more than there is: the capacity may have been raised elsewhere.
		if len(wants) == tokensPerClaim || (len(wants) > 0 && total+w.Value.n > l.capacity) {
			break
		}
		total += w.Value.n
		c.waiters = append(c.waiters, w)
		wants = append(wants, int32(w.Value.n)) //nolint:gosec // at most the capacity
	}
	head, atGate := answer != nil, l.state.atGate()
	queue := time.Duration(0)
	if head && !atGate && a.now.Sub(l.served) >= pausePooled {
		queue = turnPooled
	}
	m.writes += total
	a.ops = append(a.ops, &sidecar.Op{
		// A head's may write to the semaphore's row as well: two such rows in one transaction could be a deadlock.
		Statement: &stmtClaim, Alone: head, First: true, Then: c.answered,
		Params: [][]byte{
			pgtext.Int(int64(l.id)), pgtext.Int(l.gate.ID), pgtext.Int(m.session.holder()), pgtext.Ints(wants),
			pgtext.Int(m.cfg.TTL.Milliseconds()), pgtext.Bool(atGate), pgtext.Int(queue.Milliseconds()), pgtext.Bool(m.cfg.Pooled),
		},
	})
}

// answered takes the answer to a claim.
func (c *claimCall) answered(op *sidecar.Op) {
	l, m := c.line, c.line.manager
	m.step(func(a *actions) {
		granted, err := c.settle(op, a)
		what := served
		switch {
		case errors.Is(err, lockerr.NotFound) && m.session != nil:
			l.missing = err
			l.lookUp(ofExistence, a)
		case err != nil && !errors.Is(err, lockerr.NotAcquired):
			l.refuse(err, everybody, a)
		case err != nil:
			l.refuse(err, tries, a)
			if l.waits > 0 {
				what = short
			}
		case granted < len(c.waiters) && c.leftShort(c.waiters[granted], a):
			what = short
		}
		l.happens(what, a, nil)
		if c.answer != nil {
			if granted > 0 {
				l.served = a.now
			}
			c.answer <- granted
		}
		l.advance(a)
		m.settle()
	})
}

// leftShort answers the tries of a claim when there was not enough for one of its waiters, and reports whether that one
// goes on waiting. Behind a try that was too large, the smaller ones are asked for once more; behind one that waits, none
// is. Behind one that has left, all are.
func (c *claimCall) leftShort(short *waiter, a *actions) (waits bool) {
	if !short.Waiting() {
		return false
	}
	for _, w := range c.waiters {
		if w.Value.try && (!short.Value.try || w.Value.n >= short.Value.n) {
			c.line.respond(w, nil, errNotEnough, a)
		}
	}
	return !short.Value.try
}

var errNotEnough = fmt.Errorf("%w: there are not enough free permits, or others wait", lockerr.NotAcquired)

// settle reads the answer to a claim and deals out what it grants. An error that matches NotAcquired is one that may
// pass.
func (c *claimCall) settle(op *sidecar.Op, a *actions) (granted int, err error) {
	l := c.line
	switch {
	case op.Err != nil && (errors.Is(op.Err, lockerr.Lost) || sidecar.Passes(op.Err)):
		return 0, fmt.Errorf("%w: %w", lockerr.NotAcquired, op.Err)
	case op.Err != nil:
		return 0, op.Err
	}
	answer, err := parseClaim(op.Rows)
	if err != nil {
		return 0, err
	}
	if answer.capacity == 0 && answer.granted == 0 {
		return 0, fmt.Errorf("%w: it was removed", lockerr.NotFound)
	}
	if answer.capacity > 0 { // the fast way does not look
		l.capacity = answer.capacity
		for _, w := range c.waiters { // others may have been told of a later capacity
			if w.Value.n > l.capacity {
				l.respond(w, nil, l.tooMany(w.Value.n), a)
			}
		}
	}
	if answer.granted > 0 {
		l.manager.receive(&claim{
			line: l, semaphore: c.semaphore, session: c.session, holder: c.session.holder(), base: answer.token, since: a.now,
			trusted: op.Sent.Add(trust.Span(l.manager.cfg.TTL)), owners: map[int32]*Permit{},
		}, answer.slots, a)
	}
	return answer.granted, nil
}

// receive grants the slots that a claim has brought. The slots that are left go back.
func (m *Manager) receive(c *claim, slots []int32, a *actions) {
	switch {
	case c.session != m.session:
		return // the session that followed has freed what it was not told of, or the end of this one has
	case m.life != open, !a.now.Before(c.trusted): // the answer came too late
		m.giveBack(c, slots, nil, a)
		return
	}
	m.claims[c] = struct{}{}
	m.startRenewing()
	m.deal(c, slots, nil, a)
}

// handOver hands released slots to the next in line, or frees them, and reports whether it frees any. The permit is told
// when they are free.
func (m *Manager) handOver(c *claim, slots []int32, p *Permit, asserted bool, a *actions) (frees bool) {
	if a.now.Sub(c.since) < tenure && a.now.Before(c.trusted) && m.life == open && !asserted {
		return m.deal(c, slots, p, a)
	}
	m.giveBack(c, slots, p, a)
	return true
}

// deal makes permits of slots for the first in line, and frees what is left, if anything is.
func (m *Manager) deal(c *claim, slots []int32, p *Permit, a *actions) (frees bool) {
	for c.used < tokensPerClaim {
		w := c.line.waiters.First()
		if w == nil || w.Value.n > len(slots) {
			break
		}
		n := w.Value.n
		granted := &Permit{line: c.line, claim: c, slots: slots[:n:n], token: c.base + c.used, freed: make(chan struct{}, 1)}
		c.used++
		for _, slot := range granted.slots {
			c.owners[slot] = granted
		}
		slots = slots[n:]
		c.line.respond(w, granted, nil, a)
	}
	if len(slots) > 0 {
		m.giveBack(c, slots, p, a)
	}
	return len(slots) > 0
}
