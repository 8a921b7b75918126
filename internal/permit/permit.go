package permit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/ledger"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// block is what one statement has claimed. Guarded by the desk's mutex.
type block struct {
	line    *Line
	session *ledger.Session
	base    int64 // the first of its tokens
	used    int64 // tokens that were given out
	since   time.Time
	trusted time.Time // until then
	owners  map[int32]*Permit
	lost    error // why it is gone
}

// Permit is a grant of slots.
type Permit struct {
	grant.End

	line  *Line
	block *block
	slots []int32
	token int64

	once   sync.Once
	result error
	ch     chan struct{} // gets a value when the server has freed the slots
}

// leave is slots that go back to the server.
type leave struct {
	block  *block
	slots  []int32
	permit *Permit // whose Release waits for it; nil if none does
}

// Token is the grant's fencing token.
func (p *Permit) Token() int64 { return p.token }

// Claim names the claim behind the permit as the server knows it.
func (p *Permit) Claim() (semaphore int32, holder int64, slots []int32, base int64) {
	return p.line.id, p.block.session.Holder, p.slots, p.block.base
}

// Jeopardy is that of the session.
func (p *Permit) Jeopardy() <-chan struct{} { return p.block.session.Jeopardy() }

// Err is nil while the permit can be trusted, and says afterwards why not.
func (p *Permit) Err() error {
	if reason := p.Reason(); reason != nil {
		return reason
	}
	p.line.desk.expire(p.block)
	return p.Reason()
}

var errReleased = fmt.Errorf("%w: released", lockerr.NotHeld)

// Release ends the permit. Nil means that it was held without a break until now. Called again it returns the same.
// It ends, at the latest, with the trust in the session.
func (p *Permit) Release() error {
	p.once.Do(func() { p.result = p.release(true) })
	return p.result
}

// GiveBack ends a permit that its waiter did not want any more, without waiting.
func (p *Permit) GiveBack() { _ = p.release(false) }

func (p *Permit) release(wait bool) error {
	if err := p.Err(); err != nil {
		return err
	}
	if !p.Finish(errReleased) {
		return p.Reason()
	}
	d := p.line.desk
	a := actions{now: time.Now()}
	d.mu.Lock()
	if lost := p.block.lost; lost != nil {
		d.mu.Unlock()
		return lost
	}
	for _, slot := range p.slots {
		delete(p.block.owners, slot)
	}
	var waiting *Permit
	if wait {
		waiting = p
	}
	freed := d.pass(p.block, p.slots, waiting, &a)
	p.line.advance(&a)
	session := d.session
	d.mu.Unlock()
	d.run(&a, session, wait)
	if !freed || !wait {
		return nil
	}
	if len(a.ops) > 0 {
		session.Help(context.Background(), func() bool { return len(p.ch) > 0 })
	}
	<-p.ch
	return p.result
}

// offer grants the slots that a claim has brought. The rest goes back.
func (d *Desk) offer(b *block, slots []int32, a *actions) {
	switch {
	case d.closed:
		b.lost = lockerr.Closed
		d.leaving = append(d.leaving, &leave{block: b, slots: slots})
		d.free(a)
		return
	case !a.now.Before(b.trusted), !d.cfg.Pooled && b.session != d.session:
		return // the answer came too late; the server frees them by itself
	}
	d.blocks[b] = struct{}{}
	d.keep()
	d.deal(b, slots, nil, a)
}

// pass hands released slots to the next in line, or frees them, and says whether it frees any. The permit is told
// when they are free.
func (d *Desk) pass(b *block, slots []int32, p *Permit, a *actions) bool {
	if a.now.Sub(b.since) < tenure && a.now.Before(b.trusted) && !d.closed {
		return d.deal(b, slots, p, a)
	}
	d.putBack(b, slots, p, a)
	return true
}

// deal makes permits of slots for the first in line, and puts the rest back.
func (d *Desk) deal(b *block, slots []int32, p *Permit, a *actions) (rest bool) {
	for b.used < tokensPerClaim && len(b.line.waiters) > 0 {
		w := b.line.waiters[0]
		if w.n > len(slots) {
			break
		}
		granted := &Permit{line: b.line, block: b, slots: slots[:w.n:w.n], token: b.base + b.used, ch: make(chan struct{}, 1)}
		b.used++
		for _, slot := range granted.slots {
			b.owners[slot] = granted
		}
		slots = slots[w.n:]
		b.line.respond(w, granted, nil, a)
	}
	if len(slots) > 0 {
		d.putBack(b, slots, p, a)
	}
	return len(slots) > 0
}

func (d *Desk) putBack(b *block, slots []int32, p *Permit, a *actions) {
	if len(b.owners) == 0 {
		delete(d.blocks, b)
	}
	d.leaving = append(d.leaving, &leave{block: b, slots: slots, permit: p})
	d.free(a)
}

var stmtFree = link.Statement{Name: "pgbaton_free_slots", SQL: "SELECT * FROM pgbaton.free_slots($1, $2, $3, $4, $5)"}

// free frees the slots that leave, in one statement, unless one is under way.
func (d *Desk) free(a *actions) {
	if d.freeing || d.session == nil || len(d.leaving) == 0 {
		return
	}
	leaving := d.leaving
	d.leaving = nil
	var semaphores, slots []int32
	var tokens, gates []int64
	for _, v := range leaving {
		for _, slot := range v.slots {
			semaphores, slots = append(semaphores, v.block.line.id), append(slots, slot)
			tokens, gates = append(tokens, v.block.base), append(gates, v.block.line.gate.ID)
		}
	}
	d.freeing = true
	d.writes += len(slots)
	a.ops = append(a.ops, &link.Op{
		Kind: link.Call, Call: &stmtFree,
		Params: [][]byte{number(d.session.Holder), array(semaphores), array(slots), array(tokens), array(gates)},
		Owner:  ledger.Completion(func(op *link.Op) { d.freed(op, leaving) }),
	})
	d.tidy(a)
}

// freed takes the answer to a statement that frees.
func (d *Desk) freed(op *link.Op, leaving []*leave) {
	const maxRetries = 10
	d.step(func(a *actions) {
		var pgErr *pgconn.PgError
		if errors.As(op.Err, &pgErr) && passes(pgErr.Code) && op.Retries < maxRetries && d.session != nil {
			op.Retries++
			op.Err = nil
			a.ops = append(a.ops, op)
			return
		}
		d.freeing = false
		answer, err := parseFreed(op)
		if err != nil && !errors.Is(err, lockerr.Lost) {
			err = fmt.Errorf("%w: the server did not confirm that the permit is free: %w", lockerr.Lost, err)
		}
		place := int32(0)
		for _, v := range leaving {
			result := err
			for range v.slots {
				place++
				if _, ok := answer.places[place]; !ok && result == nil {
					result = errExpired
				}
			}
			if v.permit != nil {
				v.permit.result = result
				a.freed = append(a.freed, v.permit)
			}
		}
		for _, gate := range answer.awaited {
			if l := d.gates[gate]; l != nil && l.atGate {
				signal(l.poke)
			} else {
				a.notify = append(a.notify, gate)
			}
		}
		d.free(a)
	})
}

var errExpired = fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{
	Reason: lockerr.LeaseExpired, Cause: errors.New("by the database's clock the permit had expired"),
})
