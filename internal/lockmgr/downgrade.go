package lockmgr

import (
	"context"
	"fmt"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// shift is a downgrade under way.
type shift struct {
	done chan struct{} // closed when it was answered
	err  error         // valid then
}

// Shared reports whether the hold is a shared one by now.
func (h *Hold) Shared() bool {
	h.manager.mu.Lock()
	defer h.manager.mu.Unlock()
	return h.mode == advisory.Shared
}

// Downgrade makes an exclusive hold shared: nobody is granted the key exclusively in between, and the token stays.
// When ctx ends first, it is still held, exclusively or shared, and the downgrade goes on.
func (h *Hold) Downgrade(ctx context.Context) error {
	if err := h.Err(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("not downgraded: %w", err)
	}
	m, e := h.manager, h.key
	a := m.step()
	m.mu.Lock()
	switch {
	case h.cause != nil:
		cause := h.cause
		m.mu.Unlock()
		return lost(cause)
	case h.mode == advisory.Shared:
		m.mu.Unlock()
		return nil
	case h.owner() && e.state == held: // while it is held exclusively nothing else is under way
		e.shift, e.shifting = &shift{done: make(chan struct{})}, h
		m.happens(e, downgraded, a)
	}
	s := e.shift
	released := e.shifting != h || !h.owner()
	m.mu.Unlock()
	if released {
		return h.Err()
	}
	if len(a.requests) > 0 {
		m.run(a, h.anchor)
		h.anchor.Help(ctx, func() bool { return chans.Closed(s.done) })
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("the downgrade is still under way: %w", ctx.Err())
	}
}

// owner reports whether the hold is among its key's owners. The caller holds the manager's mutex.
func (h *Hold) owner() bool {
	for o := h.key.owners; o != nil; o = o.next {
		if o == h {
			return true
		}
	}
	return false
}

// downgraded takes the answer to a downgrade. The caller holds the mutex and advances the key.
func (m *Manager) downgraded(e *keyState, r *engine.Request, a *actions) {
	h := e.shifting
	switch {
	case r.Err != nil:
		m.happens(e, answered, a)
		e.endShift(r.Err, a)
	case r.OK:
		m.happens(e, answered, a)
		e.mode, h.mode = advisory.Shared, advisory.Shared
		e.endShift(nil, a)
	default:
		if e.owners == h {
			e.disown(h)
			h.cause = errNotThere
			a.lost = append(a.lost, h)
		}
		e.endShift(lost(errNotThere), a)
		m.happens(e, freed, a)
	}
}

// endShift answers those who wait for the key's downgrade, if there is one.
func (e *keyState) endShift(err error, a *actions) {
	if e.shift != nil {
		e.shift.err = err
		a.shifted = append(a.shifted, e.shift)
		e.shift, e.shifting = nil, nil
	}
}
