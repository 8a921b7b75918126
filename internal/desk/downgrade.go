package desk

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/link"
)

// shift is a downgrade under way.
type shift struct {
	done chan struct{} // closed when it was answered
	err  error         // valid then
}

// Shared says whether the hold is a shared one by now.
func (h *Hold) Shared() bool {
	h.desk.mu.Lock()
	defer h.desk.mu.Unlock()
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
	d, e := h.desk, h.entry
	a := actions{now: time.Now()}
	d.mu.Lock()
	switch {
	case h.seat.cause != nil:
		d.mu.Unlock()
		return lost(h.seat.cause)
	case h.mode == advisory.Shared:
		d.mu.Unlock()
		return nil
	case h.owner() && e.phase == held: // while it is held exclusively nothing else is under way
		e.shift, e.shifting = &shift{done: make(chan struct{})}, h
		d.submit(e, &a, downgrading, link.Op{Kind: link.Downgrade, Mode: advisory.Exclusive})
	}
	s := e.shift
	released := e.shifting != h || !h.owner()
	d.mu.Unlock()
	if released {
		return h.Err()
	}
	if len(a.ops) > 0 {
		d.run(&a, h.seat)
		h.seat.link.Help(ctx, func() bool { return chans.Closed(s.done) })
	}
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		return fmt.Errorf("the downgrade is still under way: %w", ctx.Err())
	}
}

// owner says whether the hold is among its entry's owners. The caller holds the desk's mutex.
func (h *Hold) owner() bool {
	for o := h.entry.owners; o != nil; o = o.next {
		if o == h {
			return true
		}
	}
	return false
}

// downgraded takes the answer to a downgrade. The caller holds the mutex and advances the entry.
func (d *Desk) downgraded(e *entry, op *link.Op, a *actions) {
	h := e.shifting
	switch {
	case op.Err != nil:
		e.phase = held
		e.endShift(op.Err, a)
	case op.OK:
		e.phase, e.mode, h.mode = held, advisory.Shared, advisory.Shared
		e.endShift(nil, a)
	default:
		if e.owners == h {
			e.disown(h)
			h.cause = errNotThere
			a.lost = append(a.lost, h)
		}
		e.endShift(lost(errNotThere), a)
		d.vacate(e)
	}
}

// endShift answers those who wait for the entry's downgrade, if there is one.
func (e *entry) endShift(err error, a *actions) {
	if e.shift != nil {
		e.shift.err = err
		a.shifted = append(a.shifted, e.shift)
		e.shift, e.shifting = nil, nil
	}
}
