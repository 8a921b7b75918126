package desk

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Hold is a grant.
type Hold struct {
	desk  *Desk
	entry *entry
	seat  *seat
	mode  advisory.Mode // guarded by the desk's mutex
	cause error         // why it was lost, if not with its seat; set before anybody is told
	token int64
	ch    chan struct{} // gets a value when the unlock of this hold was answered

	next, prev *Hold // owners of the entry; guarded by the desk's mutex

	grant.End

	mu     sync.Mutex
	result error // of Release; valid when released is
	state  releaseState
	freed  chan struct{} // closed when released; made by whoever must wait for it
}

type releaseState uint8

const (
	unreleased releaseState = iota
	beingReleased
	released
)

// Token is the grant's fencing token.
func (h *Hold) Token() int64 { return h.token }

// Err is nil while the hold can be trusted, and says afterwards why not.
func (h *Hold) Err() error {
	over := h.Reason()
	if over == nil && !h.seat.link.Trusted(time.Now()) {
		// The clock knows it before the keeper has come to it.
		h.seat.link.Fail(h.seat.link.Expired())
		h.Finish(lost(h.seat.link.Expired()))
		return h.Reason()
	}
	return over
}

// Jeopardy is that of the hold's link.
func (h *Hold) Jeopardy() <-chan struct{} { return h.seat.link.Jeopardy() }

// end tells of the loss of the hold's link.
func (h *Hold) end() {
	if h.cause != nil {
		h.Finish(lost(h.cause))
		return
	}
	h.Finish(lost(h.seat.cause))
}

func lost(cause error) error { return fmt.Errorf("%w: %w", lockerr.Lost, cause) }

var errReleased = fmt.Errorf("%w: released", lockerr.NotHeld)

// Release ends the hold. Nil means that it was held without a break until now, as far as the server or, when
// the key is handed over in the process, the trust in the link can say. Called again it returns the
// same. It does not heed any context: it ends, at the latest, with the trust in the link.
func (h *Hold) Release() error {
	if !h.claim() {
		h.mu.Lock()
		if h.state == released {
			h.mu.Unlock()
			return h.result
		}
		if h.freed == nil {
			h.freed = make(chan struct{})
		}
		freed := h.freed
		h.mu.Unlock()
		<-freed
		return h.result
	}
	err := h.release(true)
	h.settle(err)
	return err
}

// claim says whether the release is the caller's to carry out: it is the first.
func (h *Hold) claim() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state != unreleased {
		return false
	}
	h.state = beingReleased
	return true
}

// settle ends a release that was claimed.
func (h *Hold) settle(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state, h.result = released, err
	if h.freed != nil {
		close(h.freed)
	}
	if err == nil { // nobody will write to it any more
		h.desk.signals.Put(h.ch)
		h.ch = nil
	}
}

// Forfeit ends a hold as lost, for a cause of its own: the holder is told first, then the key goes to others. It does
// nothing when the hold is over or being released.
func (h *Hold) Forfeit(cause error) {
	if !h.Finish(lost(cause)) {
		return
	}
	d, e := h.desk, h.entry
	a := actions{now: time.Now()}
	d.mu.Lock()
	if h.seat.cause == nil && h.cause == nil { // else it was lost meanwhile, and is nobody's
		h.cause = cause
		e.disown(h)
		d.advance(e, &a)
	}
	d.mu.Unlock()
	d.run(&a, nil)
}

// GiveBack ends a hold that its waiter did not want any more, without waiting.
func (h *Hold) GiveBack() { _ = h.release(false) }

func (h *Hold) release(wait bool) error {
	a := actions{now: time.Now()}
	unlocking, err := h.part(wait, &a)
	if err != nil || !unlocking {
		h.desk.run(&a, nil)
		return err
	}
	h.desk.run(&a, h.seat)
	h.seat.link.Help(context.Background(), func() bool { return len(h.ch) > 0 })
	<-h.ch
	return h.result
}

// part takes the hold from its entry. With wait it says whether an unlock is among the actions now whose answer
// comes on the hold's channel.
func (h *Hold) part(wait bool, a *actions) (unlocking bool, err error) {
	if wait {
		// What follows may be a hand-over in memory, of which the server knows nothing.
		h.seat.link.CatchUp(context.Background())
	}
	if err := h.Err(); err != nil {
		return false, err
	}
	if !h.Finish(errReleased) { // it was taken away at this very moment, by whoever finished it
		return false, h.Reason()
	}
	d, e := h.desk, h.entry
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case h.seat.cause != nil:
		return false, lost(h.seat.cause)
	case h.cause != nil:
		return false, lost(h.cause)
	}
	e.disown(h)
	before := len(a.ops)
	d.advance(e, a)
	unlocking = wait && e.phase == releasing && e.leaving == nil && len(a.ops) > before
	if unlocking {
		e.leaving = h
	}
	return unlocking, nil
}
