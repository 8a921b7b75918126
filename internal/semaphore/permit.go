package semaphore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Permit is a grant of slots.
type Permit struct {
	grant.End

	line  *Line
	claim *claim
	slots []int32
	token int64

	asserted atomic.Bool // a transaction counts on the slots

	once   sync.Once
	result error
	parts  int           // of its slots that go back and are not answered yet; guarded by the manager's mutex
	freed  chan struct{} // gets a value when the server has freed the slots
}

// Token is the grant's fencing token.
func (p *Permit) Token() int64 { return p.token }

// Claim names the claim behind the permit as the server knows it.
func (p *Permit) Claim() (semaphore int32, holder int64, slots []int32, base int64) {
	return p.claim.semaphore, p.claim.holder, p.slots, p.claim.base
}

// Asserted reports that a transaction counts on the slots. It may not have ended when the permit is released, so they
// go back to the server then, which gives them to nobody before.
func (p *Permit) Asserted() { p.asserted.Store(true) }

// Err is nil while the permit can be trusted, and says afterwards why not.
func (p *Permit) Err() error {
	if reason := p.Reason(); reason != nil {
		return reason
	}
	p.line.manager.expire(p.claim)
	return p.Reason()
}

var errReleased = fmt.Errorf("%w: released", lockerr.NotHeld)

// Release ends the permit. Nil means that it was held without a break until now. Called again it returns the same.
// It waits for the server's word for as long as the permit would have been trusted.
func (p *Permit) Release() error {
	p.once.Do(func() { p.result = p.release(true) })
	return p.result
}

// GiveBack ends a permit that its waiter no longer wants, without waiting.
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
	return p.surrender(wait)
}

// Forfeit ends a permit as lost, for a cause of its own: the holder is told first, then the slots go to others. It does
// nothing when the permit is over.
func (p *Permit) Forfeit(cause error) {
	if p.Finish(fmt.Errorf("%w: %w", lockerr.Lost, cause)) {
		_ = p.surrender(false) // it was lost anyway
	}
}

// surrender gives the slots of a permit that has been ended to others. With wait it returns when the server has freed
// them.
func (p *Permit) surrender(wait bool) error {
	m := p.line.manager
	a := actions{now: time.Now()}
	m.mu.Lock()
	lost := p.claim.lost
	if lost == nil && p.claim.owners[p.slots[0]] != p {
		lost = errExpired // it is about to be told
	}
	if lost != nil {
		m.mu.Unlock()
		return lost
	}
	for _, slot := range p.slots {
		delete(p.claim.owners, slot)
	}
	var waiting *Permit
	if wait {
		waiting = p
	}
	frees := m.handOver(p.claim, p.slots, waiting, p.asserted.Load(), &a)
	p.line.advance(&a)
	s, until := m.session, p.claim.trusted
	m.mu.Unlock()
	m.run(&a, s, wait)
	if !frees || !wait {
		return nil
	}
	if len(a.ops) > 0 {
		ctx, cancel := context.WithDeadline(context.Background(), until)
		s.Help(ctx, func() bool { return len(p.freed) > 0 })
		cancel()
	}
	<-p.freed // it comes at the latest when the goroutine that renews finds the trust gone
	return p.result
}

// catchUp makes sure that the news of the session are known: what follows may be a hand-over in memory.
func (p *Permit) catchUp() {
	m := p.line.manager
	m.mu.Lock()
	s := p.claim.session
	m.mu.Unlock()
	s.CatchUp()
}
