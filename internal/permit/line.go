package permit

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// Line is a semaphore as this process uses it. All but desk, id, name, gate and the channels is guarded by the
// desk's mutex.
type Line struct {
	desk *Desk
	id   int32 // on the server of the present session; see inquired
	name string
	gate advisory.Key

	capacity  int
	waiters   list.List // of *waiter, in the order of their arrival
	waits     int       // those of them that wait, and do not only try
	claiming  bool
	inquiring bool               // the server is being asked for the capacity
	missing   error              // why, if the last claim found no such semaphore
	heading   bool               // there is a head
	atGate    bool               // and it is its turn
	served    time.Time          // when the head last got something
	leave     context.CancelFunc // ends its wait

	poke chan struct{} // slots may be free
}

// waiter is a goroutine that waits for a permit.
type waiter struct {
	n   int
	try bool

	place    *list.Element // in the line; nil when it has left it
	answered bool
	permit   *Permit
	err      error
	ch       chan struct{} // gets one value when answered
}

// claim is a statement under way.
type claim struct {
	line      *Line
	semaphore int32 // the id then
	session   *sidecar.Session
	waiters   []*waiter // that it asks for
	answer    chan int  // for the head: how many were granted
}

var stmtClaim = pipeline.Statement{
	Name: "pgbaton_claim", SQL: "SELECT * FROM pgbaton.claim_slots($1, $2, $3, $4, $5, $6, $7, $8)",
}

// Acquire waits for a permit of n slots until ctx ends; with try, only for the server's answer. On failure nothing
// is held, and nothing will be.
func (l *Line) Acquire(ctx context.Context, n int, try bool) (*Permit, error) {
	d := l.desk
	if ctx.Err() != nil {
		return nil, l.ended(ctx)
	}
	w := &waiter{n: n, try: try, ch: make(chan struct{}, 1)}
	a := actions{now: time.Now()}
	d.mu.Lock()
	err := l.enter(w, &a)
	session := d.session
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d.run(&a, session, true)
	if len(a.ops) > 0 {
		session.Help(ctx, func() bool { return len(w.ch) > 0 })
	}
	select {
	case <-w.ch:
	case <-ctx.Done():
		if l.abandon(w) {
			return nil, l.ended(ctx)
		}
		<-w.ch
	}
	if w.err != nil {
		return nil, w.err
	}
	if ctx.Err() != nil { // when both are true, fail: the caller has stopped waiting
		w.permit.GiveBack()
		return nil, l.ended(ctx)
	}
	return w.permit, nil
}

func (l *Line) enter(w *waiter, a *actions) error {
	switch {
	case l.desk.closed:
		return lockerr.Closed
	case w.try && l.waits > 0:
		return fmt.Errorf("%w: others wait", lockerr.NotAcquired)
	}
	w.place = l.waiters.PushBack(w)
	if !w.try {
		l.waits++
	}
	l.advance(a)
	if w.n > l.capacity && (l.heading || l.first() != w) {
		l.inquire(a) // else it would hear of it when it is its turn
	}
	return nil
}

// first is the first in line, nil if there is nobody.
func (l *Line) first() *waiter {
	if place := l.waiters.Front(); place != nil {
		return place.Value.(*waiter) //nolint:forcetypeassert // there is nothing else in it
	}
	return nil
}

// remove takes a waiter out of the line. When nobody waits any more, the wait at the gate ends.
func (l *Line) remove(w *waiter) {
	if w.place == nil {
		return
	}
	l.waiters.Remove(w.place)
	w.place = nil
	if !w.try {
		l.waits--
	}
	if l.waits == 0 && l.leave != nil {
		l.leave()
	}
}

// Resized takes note of a new capacity.
func (l *Line) Resized(capacity int) {
	l.desk.step(func(a *actions) {
		l.resized(capacity, a)
		chans.Signal(l.poke)
	})
	l.desk.cfg.Ledger.Notify(resizedPrefix + strconv.FormatInt(l.gate.ID, 10))
}

// resized answers those who want more than there is.
func (l *Line) resized(capacity int, a *actions) {
	l.capacity = capacity
	l.each(func(w *waiter) {
		if w.n > capacity {
			l.respond(w, nil, l.tooMany(w.n), a)
		}
	})
}

// each calls f for all in line. f may take the one that it is called for out of it.
func (l *Line) each(f func(w *waiter)) {
	for place := l.waiters.Front(); place != nil; {
		next := place.Next()
		f(place.Value.(*waiter)) //nolint:forcetypeassert // there is nothing else in it
		place = next
	}
}

var stmtCapacity = pipeline.Statement{
	Name: "pgbaton_capacity", SQL: "SELECT id, capacity FROM pgbaton.open_semaphore($1, NULL)",
}

// inquire asks the server for the capacity, for those who may want more than there is and are not at the head of the
// line.
func (l *Line) inquire(a *actions) {
	if l.inquiring || l.desk.session == nil {
		return
	}
	l.inquiring = true
	a.ops = append(a.ops, &sidecar.Op{
		Statement: &stmtCapacity, Params: [][]byte{[]byte(l.name)}, Then: l.inquired,
	})
}

// inquired takes the answer. A failure is left to the next claim, which will see it too. The semaphore may have another
// id: the client has moved to another server, or somebody has removed it and made it anew.
func (l *Line) inquired(op *sidecar.Op) {
	l.desk.step(func(a *actions) {
		l.inquiring = false
		missing := l.missing
		l.missing = nil
		defer l.advance(a)
		if op.Err == nil && len(op.Rows) == 1 {
			id, err1 := strconv.ParseInt(string(op.Rows[0][0]), 10, 32)
			capacity, err2 := strconv.Atoi(string(op.Rows[0][1]))
			if err1 == nil && err2 == nil && (missing == nil || int32(id) != l.id) {
				l.id = int32(id)
				l.resized(capacity, a)
				return
			}
		}
		if missing != nil && (op.Err == nil || !errors.Is(op.Err, lockerr.Lost) && !sidecar.Passes(op.Err)) {
			l.refuse(missing, func(*waiter) bool { return true }, a)
		}
	})
}

func (l *Line) tooMany(n int) error {
	return fmt.Errorf("%w: %d wanted, the capacity is %d", lockerr.OverCapacity, n, l.capacity)
}

// abandon takes a waiter out of the line, unless it was answered.
func (l *Line) abandon(w *waiter) bool {
	dropped := false
	l.desk.step(func(a *actions) {
		if w.answered {
			return
		}
		dropped = true
		first := l.first() == w
		l.remove(w)
		l.advance(a)
		if first {
			chans.Signal(l.poke) // the next may want less
		}
	})
	return dropped
}

// ended is the error of a wait that the context ended.
func (l *Line) ended(ctx context.Context) error {
	l.desk.mu.Lock()
	failure := l.desk.failure
	l.desk.mu.Unlock()
	err := fmt.Errorf("%w: %w", lockerr.NotAcquired, ctx.Err())
	if cause := context.Cause(ctx); !errors.Is(ctx.Err(), cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if failure != nil {
		err = fmt.Errorf("%w; there is no connection: %w", err, failure)
	}
	return err
}

// advance asks for slots for those who wait, unless that is under way or the head's to do. The caller holds the
// mutex, as of all that take actions.
func (l *Line) advance(a *actions) {
	if l.waiters.Len() > 0 && !l.claiming && !l.heading && l.missing == nil {
		l.claim(a, nil)
	}
}

// claim asks for the slots that the first in line want; for the head it gives the answer. It says whether it did:
// without a session it cannot.
func (l *Line) claim(a *actions, answer chan int) bool {
	d := l.desk
	if d.session == nil {
		d.cfg.Ledger.Current() // opens one
		return false
	}
	c := &claim{line: l, semaphore: l.id, session: d.session, answer: answer}
	wants, total := make([]int32, 0, 1), 0
	for place := l.waiters.Front(); place != nil; place = place.Next() {
		w := place.Value.(*waiter) //nolint:forcetypeassert // there is nothing else in it
		// The first is asked for even if it wants more than there is: the capacity may have been raised elsewhere.
		if len(wants) == tokensPerClaim || (len(wants) > 0 && total+w.n > l.capacity) {
			break
		}
		total += w.n
		c.waiters = append(c.waiters, w)
		wants = append(wants, int32(w.n)) //nolint:gosec // at most the capacity
	}
	head, standing := answer != nil, answer != nil && l.atGate
	queue := time.Duration(0)
	if head && !standing && a.now.Sub(l.served) >= restPooled {
		queue = turnPooled
	}
	l.claiming = true
	d.writes += total
	a.ops = append(a.ops, &sidecar.Op{
		// A head's may write to the semaphore's row as well: two such rows in one transaction could be a deadlock.
		Statement: &stmtClaim, Alone: head, First: true, Then: c.completed,
		Params: [][]byte{
			number(int64(l.id)), number(l.gate.ID), number(d.session.Holder), array(wants), number(d.cfg.TTL.Milliseconds()),
			boolean(standing), number(queue.Milliseconds()), boolean(d.cfg.Pooled),
		},
	})
	return true
}

// completed takes the answer to a claim.
func (c *claim) completed(op *sidecar.Op) {
	l, d := c.line, c.line.desk
	d.step(func(a *actions) {
		l.claiming = false
		granted, err := c.take(op, a)
		var short *waiter // the first for which there was not enough
		switch {
		case errors.Is(err, lockerr.NotFound) && d.session != nil:
			l.missing = err
			l.inquire(a)
		case err != nil && !errors.Is(err, lockerr.NotAcquired):
			l.refuse(err, func(*waiter) bool { return true }, a)
		case err != nil:
			l.refuse(err, (*waiter).tries, a)
		case granted < len(c.waiters):
			short = c.waiters[granted]
			if short.place != nil { // else it has left, and the others are asked for anew
				c.refuseTries(short, a)
			}
		}
		switch {
		case c.answer != nil:
			if granted > 0 {
				l.served = a.now
			}
			c.answer <- granted
		case l.waits > 0 && (err != nil || (short != nil && short.place != nil)):
			l.refuse(errNotEnough, (*waiter).tries, a)
			l.head()
		}
		l.advance(a)
		d.drain()
	})
}

// refuseTries answers the tries of a claim for which there was not enough. Behind a try that was too large, the
// smaller ones are asked for once more; behind one that waits, none is.
func (c *claim) refuseTries(short *waiter, a *actions) {
	for _, w := range c.waiters {
		if w.place != nil && w.try && (!short.try || w.n >= short.n) {
			c.line.respond(w, nil, errNotEnough, a)
		}
	}
}

var errNotEnough = fmt.Errorf("%w: there are not enough free permits, or others wait", lockerr.NotAcquired)

func (w *waiter) tries() bool { return w.try }

// take reads the answer to a claim and deals out what it grants. An error that matches NotAcquired is one that may
// pass.
func (c *claim) take(op *sidecar.Op, a *actions) (int, error) {
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
			if w.place != nil && w.n > l.capacity {
				l.respond(w, nil, l.tooMany(w.n), a)
			}
		}
	}
	if answer.granted > 0 {
		b := &block{
			line: l, semaphore: c.semaphore, session: c.session, holder: c.session.Holder, base: answer.token, since: a.now,
			trusted: op.Sent.Add(l.desk.trustSpan()), owners: map[int32]*Permit{},
		}
		l.desk.offer(b, answer.slots, a)
	}
	return answer.granted, nil
}

// respond answers a waiter and takes it out of the line.
func (l *Line) respond(w *waiter, p *Permit, err error, a *actions) {
	w.answered, w.permit, w.err = true, p, err
	l.remove(w)
	a.wake = append(a.wake, w)
}

// refuse answers those who wait, or some of them, with an error.
func (l *Line) refuse(err error, which func(*waiter) bool, a *actions) {
	l.each(func(w *waiter) {
		if which(w) {
			l.respond(w, nil, err, a)
		}
	})
}
