package permit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// block is what one statement has claimed. Guarded by the desk's mutex.
type block struct {
	line      *Line
	semaphore int32            // the id by which it was claimed
	session   *sidecar.Session // that claimed or, behind a pooler, last renewed it
	holder    int64
	base      int64 // the first of its tokens
	used      int64 // tokens that were given out
	since     time.Time
	trusted   time.Time // until then
	owners    map[int32]*Permit
	lost      error // why it is gone
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

// Token is the grant's fencing token.
func (p *Permit) Token() int64 { return p.token }

// Claim names the claim behind the permit as the server knows it.
func (p *Permit) Claim() (semaphore int32, holder int64, slots []int32, base int64) {
	return p.block.semaphore, p.block.holder, p.slots, p.block.base
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
// It waits for the server's word for as long as the permit would have been trusted.
func (p *Permit) Release() error {
	p.once.Do(func() { p.result = p.release(true) })
	return p.result
}

// GiveBack ends a permit that its waiter did not want any more, without waiting.
func (p *Permit) GiveBack() { _ = p.release(false) }

func (p *Permit) release(wait bool) error {
	if wait {
		p.catchUp()
	}
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
	session, until := d.session, p.block.trusted
	d.mu.Unlock()
	d.run(&a, session, wait)
	if !freed || !wait {
		return nil
	}
	if len(a.ops) > 0 {
		ctx, cancel := context.WithDeadline(context.Background(), until)
		session.Help(ctx, func() bool { return len(p.ch) > 0 })
		cancel()
	}
	<-p.ch // the keeper sees to it that it comes
	return p.result
}

// catchUp makes sure that the news of the session are known: what follows may be a hand-over in memory.
func (p *Permit) catchUp() {
	d := p.line.desk
	d.mu.Lock()
	s := p.block.session
	d.mu.Unlock()
	s.CatchUp()
}

// offer grants the slots that a claim has brought. The rest goes back.
func (d *Desk) offer(b *block, slots []int32, a *actions) {
	switch {
	case b.session != d.session:
		return // the session that followed has freed what it was not told of, or the end of this one has
	case d.closed, !a.now.Before(b.trusted): // the answer came too late
		d.putBack(b, slots, nil, a)
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
