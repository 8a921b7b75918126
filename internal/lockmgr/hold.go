package lockmgr

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Hold is a grant.
type Hold struct {
	manager *Manager
	key     *keyState
	anchor  engine.Anchor
	mode    advisory.Mode
	use     advisory.Use
	cause   error // why it was lost; set before anybody is told, guarded by the manager's mutex until then
	token   int64
	ch      chan struct{} // gets a value when the unlock of this hold was answered

	next, prev *Hold // owners of the entry; guarded by the manager's mutex

	grant.End

	mu     sync.Mutex
	result error // of Release; valid when released is
	state  releaseState
	freed  chan struct{} // closed when released; made by a caller that must wait for it
}

type releaseState uint8

const (
	unreleased releaseState = iota
	beingReleased
	released
)

// Token is the grant's fencing token.
func (h *Hold) Token() int64 { return h.token }

// Mode is that in which the key is held.
func (h *Hold) Mode() advisory.Mode { return h.mode }

// Err is nil while the hold can be trusted, and says afterwards why not.
func (h *Hold) Err() error {
	over := h.Reason()
	if over == nil && !h.anchor.Trusted(time.Now()) {
		// The clock knows it before the engine has come to it.
		h.Finish(lost(h.anchor.Expire()))
		return h.Reason()
	}
	return over
}

func lost(cause error) error { return fmt.Errorf("%w: %w", lockerr.Lost, cause) }

var errReleased = fmt.Errorf("%w: released", lockerr.NotHeld)

// Release ends the hold. Nil means that it was held without a break until now, as far as the server or, when
// the key is handed over in the process, the trust in the anchor can say. Called again it returns the
// same. It does not heed any context: it ends, at the latest, with the trust in the anchor.
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

// claim reports whether the release is the caller's to carry out: it is the first.
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
	if err == nil { // nobody will write to it any longer
		h.manager.signals.Put(h.ch)
		h.ch = nil
	}
}

// Forfeit ends a hold as lost, for a cause of its own: the holder is told first, then the key goes to others. It does
// nothing when the hold is over or being released.
func (h *Hold) Forfeit(cause error) {
	if !h.Finish(lost(cause)) {
		return
	}
	m, e := h.manager, h.key
	a := m.step()
	m.mu.Lock()
	if h.cause == nil { // else it was lost meanwhile, and is nobody's
		h.cause = cause
		e.disown(h)
		m.advance(e, a)
	}
	m.mu.Unlock()
	m.run(a, nil)
}

// GiveBack ends a hold that its waiter did not want any longer, without waiting.
func (h *Hold) GiveBack() { _ = h.release(false) }

func (h *Hold) release(wait bool) error {
	a := h.manager.step()
	unlocking, err := h.part(wait, a)
	if err != nil || !unlocking {
		h.manager.run(a, nil)
		return err
	}
	h.manager.run(a, h.anchor)
	h.anchor.Help(context.Background(), func() bool { return len(h.ch) > 0 })
	<-h.ch
	return h.result
}

// part takes the hold from its key. With wait it reports whether an unlock is among the actions now whose answer
// comes on the hold's channel.
func (h *Hold) part(wait bool, a *actions) (unlocking bool, err error) {
	if wait {
		// A hand-over in memory may follow, of which the server knows nothing.
		h.anchor.CatchUp(context.Background())
	}
	if err := h.Err(); err != nil {
		return false, err
	}
	if !h.Finish(errReleased) { // it was taken away at this very moment, by the one that finished it
		return false, h.Reason()
	}
	m, e := h.manager, h.key
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.cause != nil {
		return false, lost(h.cause)
	}
	e.disown(h)
	before := len(a.requests)
	m.advance(e, a)
	unlocking = wait && e.state == releasing && e.leaving == nil && len(a.requests) > before
	if unlocking {
		e.leaving = h
	}
	return unlocking, nil
}
