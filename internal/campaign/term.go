package campaign

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
)

// Term is a time for which the client leads. It ends with End.
type Term struct {
	Hold *lockmgr.Hold

	office *Office
	post   *post
	over   chan struct{} // closed when the term has ended
	result error         // of End; set before over is closed

	// Guarded by the office's mutex.
	cancel   context.CancelCauseFunc // tells those who work in the term; nil before Attach
	cause    error                   // why it should end; nil while it should not
	holder   int64                   // the ledger's holder under which the row was written last; 0 for none
	stricken *strike                 // nil until the row is to be cleared
	ending   bool                    // End has begun
}

// Name is what is led.
func (t *Term) Name() string { return t.post.name }

// Attach gives the function to be called, once, when the term should end, with Resigned or the reason of the loss.
func (t *Term) Attach(cancel context.CancelCauseFunc) {
	o := t.office
	o.mu.Lock()
	t.cancel = cancel
	cause := t.cause
	o.mu.Unlock()
	if cause != nil {
		cancel(cause)
	}
}

// ask tells the term to end. The first reason counts.
func (t *Term) ask(cause error) {
	o := t.office
	o.mu.Lock()
	if t.cause != nil {
		o.mu.Unlock()
		return
	}
	t.cause = cause
	cancel := t.cancel
	o.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// finished is told that the lock is over.
func (t *Term) finished(reason error) {
	if errors.Is(reason, lockerr.NotHeld) { // released
		reason = lockerr.Resigned
	}
	t.ask(reason)
	t.office.mu.Lock()
	ending := t.ending
	t.office.mu.Unlock()
	if !ending { // else End does it, when it has told the others
		t.office.strike(t)
	}
}

// End ends the term: the lock is released, others hear of it, the row is cleared. Its error is that of the release:
// Lost if it was not held until now. It waits for the release, whatever ctx says, but for the row only a moment when ctx
// has ended: the clerk clears it in any case.
func (t *Term) End(ctx context.Context) error {
	o, p := t.office, t.post
	o.mu.Lock()
	t.ending = true
	o.mu.Unlock()
	t.result = t.Hold.Release()
	o.mu.Lock()
	p.term = nil
	if t.result == nil {
		o.rest(p.name)
	}
	o.mu.Unlock()
	if t.result == nil { // before the row is cleared: who has it locked would delay the news
		o.cfg.Ledger.Notify(freePrefix + p.name)
	}
	s := o.strike(t)
	wait := farewell
	if ctx.Err() != nil {
		wait = nod
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
	case <-o.stopped:
	}
	chans.Signal(o.tries) // there may be others who wait for it here
	close(t.over)
	return t.result
}

// lead returns the term of a name that the client leads, or nil.
func (o *Office) lead(name string) *Term {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.posts[name]; p != nil {
		return p.term
	}
	return nil
}

// Resign ends the client's own term of a name, and waits until it has ended.
func (o *Office) Resign(ctx context.Context, name string) error {
	t := o.lead(name)
	if t == nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.closed {
			return lockerr.Closed
		}
		return fmt.Errorf("%w: this client does not lead it; RequestResign asks whoever does", lockerr.NotHeld)
	}
	t.ask(lockerr.Resigned)
	select {
	case <-t.over:
		return t.result
	case <-ctx.Done():
		return fmt.Errorf("asked to, but it has not ended: %w", ended(ctx, nil))
	}
}

// heardRequest is told that a term was asked to end. Every role that may connect can notify, so what it hears only makes the
// clerk look at the rows now.
func (o *Office) heardRequest(payload string) {
	number, name, ok := strings.Cut(strings.TrimPrefix(payload, resignPrefix), "/")
	if !ok {
		return
	}
	t := o.lead(name)
	if term, err := strconv.ParseInt(number, 10, 64); err == nil && t != nil && t.Hold.Token() == term {
		o.mu.Lock()
		o.polled = time.Time{}
		o.mu.Unlock()
		chans.Signal(o.rows)
	}
}
