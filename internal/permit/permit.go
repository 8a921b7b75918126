package permit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/ledger"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// block is what one statement has claimed. Guarded by the desk's mutex.
type block struct {
	line    *Line
	session *ledger.Session // that claimed or, behind a pooler, last renewed it
	holder  int64
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

	asserted atomic.Bool // a transaction counts on the slots

	once   sync.Once
	result error
	parts  int           // leaves that are not answered yet; guarded by the desk's mutex
	ch     chan struct{} // gets a value when the server has freed the slots
}

// leave is slots that go back to the server.
type leave struct {
	block  *block
	slots  []int32 // at most perStatement
	permit *Permit // whose Release waits for it; nil if none does
}

// perStatement is how many slots a statement frees or renews at the most, so that what is sent fits into the
// socket's buffer.
const perStatement = 500

// end answers the Release that waits for the slots, when they were the last of its permit's.
func (v *leave) end(result error, a *actions) {
	p := v.permit
	if p == nil {
		return
	}
	if p.result == nil {
		p.result = result
	}
	if p.parts--; p.parts == 0 {
		a.freed = append(a.freed, p)
	}
}

// Token is the grant's fencing token.
func (p *Permit) Token() int64 { return p.token }

// Claim names the claim behind the permit as the server knows it.
func (p *Permit) Claim() (semaphore int32, holder int64, slots []int32, base int64) {
	return p.line.id, p.block.holder, p.slots, p.block.base
}

// Asserted says that a transaction counts on the slots. It may not have ended when the permit is released, so they
// go back to the server then, which gives them to nobody before.
func (p *Permit) Asserted() { p.asserted.Store(true) }

// Jeopardy is that of the session.
func (p *Permit) Jeopardy() <-chan struct{} {
	d := p.line.desk
	d.mu.Lock()
	defer d.mu.Unlock()
	return p.block.session.Jeopardy()
}

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
	return p.part(wait)
}

// Forfeit ends a permit as lost, for a cause of its own: the holder is told first, then the slots go to others. It does
// nothing when the permit is over.
func (p *Permit) Forfeit(cause error) {
	if p.Finish(fmt.Errorf("%w: %w", lockerr.Lost, cause)) {
		_ = p.part(false) // it was lost anyway
	}
}

// part gives the slots of a permit that has been ended to others. With wait it returns when the server has freed them.
func (p *Permit) part(wait bool) error {
	d := p.line.desk
	a := actions{now: time.Now()}
	d.mu.Lock()
	lost := p.block.lost
	if lost == nil && p.block.owners[p.slots[0]] != p {
		lost = errExpired // it is about to be told
	}
	if lost != nil {
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
	freed := d.pass(p.block, p.slots, waiting, p.asserted.Load(), &a)
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
		d.putBack(b, slots, nil, a)
		return
	case !a.now.Before(b.trusted), b.session != d.session:
		// The answer came too late: the server frees them by itself, or the session that followed has freed what it was
		// not told of.
		return
	}
	d.blocks[b] = struct{}{}
	d.keep()
	d.deal(b, slots, nil, a)
}

// pass hands released slots to the next in line, or frees them, and says whether it frees any. The permit is told
// when they are free.
func (d *Desk) pass(b *block, slots []int32, p *Permit, asserted bool, a *actions) bool {
	if a.now.Sub(b.since) < tenure && a.now.Before(b.trusted) && !d.closed && !asserted {
		return d.deal(b, slots, p, a)
	}
	d.putBack(b, slots, p, a)
	return true
}

// deal makes permits of slots for the first in line, and puts the rest back.
func (d *Desk) deal(b *block, slots []int32, p *Permit, a *actions) (rest bool) {
	for b.used < tokensPerClaim {
		w := b.line.first()
		if w == nil || w.n > len(slots) {
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
	for part := range slices.Chunk(slots, perStatement) {
		d.leaving = append(d.leaving, &leave{block: b, slots: part, permit: p})
		if p != nil {
			p.parts++
		}
	}
	d.free(a)
	d.dismiss(a)
}

var stmtFree = link.Statement{Name: "pgbaton_free_slots", SQL: "SELECT * FROM pgbaton.free_slots($1, $2, $3, $4, $5)"}

// free frees the slots that leave, in one statement, unless one is under way.
func (d *Desk) free(a *actions) {
	if d.freeing || d.session == nil || len(d.leaving) == 0 {
		return
	}
	count, size := 0, 0
	for _, v := range d.leaving {
		if size += len(v.slots); size > perStatement && count > 0 {
			break
		}
		count++
	}
	leaving := slices.Clone(d.leaving[:count])
	d.leaving = slices.Delete(d.leaving, 0, count)
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
			v.end(result, a)
		}
		for _, gate := range answer.awaited {
			if l := d.gates[gate]; l != nil && l.atGate {
				chans.Signal(l.poke)
			} else {
				a.notify = append(a.notify, gate)
			}
		}
		d.free(a)
		d.dismiss(a)
	})
}

var errExpired = fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{
	Reason: lockerr.LeaseExpired, Cause: errors.New("by the database's clock the permit had expired, or its semaphore was removed"),
})
