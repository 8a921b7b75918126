package election

import (
	"context"
	"errors"
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

	manager *Manager
	contest *contest
	over    chan struct{} // closed when the term has ended

	// Guarded by the manager's mutex.
	cancel context.CancelCauseFunc // tells the func of the term; nil before Attach
	cause  error                   // why it should end; nil while it should not
	holder int64                   // the ledger's holder under which the row was written last; 0 for none
	old    *oldRow                 // nil until the row is to be cleared
	ending bool                    // End has begun
}

// Name is what is led.
func (t *Term) Name() string { return t.contest.name }

// Attach gives the function to be called, once, when the term should end, with Resigned or the reason of the loss.
func (t *Term) Attach(cancel context.CancelCauseFunc) {
	m := t.manager
	m.mu.Lock()
	t.cancel = cancel
	cause := t.cause
	m.mu.Unlock()
	if cause != nil {
		cancel(cause)
	}
}

// askToEnd asks the func to return. The first reason counts.
func (t *Term) askToEnd(cause error) {
	m := t.manager
	m.mu.Lock()
	if t.cause != nil {
		m.mu.Unlock()
		return
	}
	t.cause = cause
	cancel := t.cancel
	m.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// finished is told that the lock is over.
func (t *Term) finished(reason error) {
	if errors.Is(reason, lockerr.NotHeld) { // released
		reason = lockerr.Resigned
	}
	t.askToEnd(reason)
	t.manager.mu.Lock()
	ending := t.ending
	t.manager.mu.Unlock()
	if !ending { // else End does it, when it has told the others
		t.manager.clearRow(t)
	}
}

// End ends the term: the lock is released, others hear of it, the row is cleared. Its error is that of the release:
// Lost if it was not held until now. It waits for the release, whatever ctx says, but for the row only a moment when ctx
// has ended: the goroutine that writes clears it in any case.
func (t *Term) End(ctx context.Context) error {
	m, p := t.manager, t.contest
	m.mu.Lock()
	t.ending = true
	m.mu.Unlock()
	err := t.Hold.Release()
	m.mu.Lock()
	p.term = nil
	if err == nil {
		m.holdOff(p.name)
	}
	m.mu.Unlock()
	if err == nil { // before the row is cleared: a lock on it would delay the news
		m.cfg.Sidecar.Notify(freePrefix + p.name)
	}
	s := m.clearRow(t)
	wait := farewell
	if ctx.Err() != nil {
		wait = farewellEnded
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
	case <-m.stopped:
	}
	chans.Signal(m.tries) // there may be other candidates here
	close(t.over)
	return err
}

// termOf returns the term of a name that the client leads, or nil.
func (m *Manager) termOf(name string) *Term {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.contests[name]; p != nil {
		return p.term
	}
	return nil
}

// heardRequest is told that a term was asked to end. Every role that may connect can notify, so what it hears only makes the
// manager look at the rows now.
func (m *Manager) heardRequest(payload string) {
	number, name, ok := strings.Cut(strings.TrimPrefix(payload, resignPrefix), "/")
	if !ok {
		return
	}
	t := m.termOf(name)
	if term, err := strconv.ParseInt(number, 10, 64); err == nil && t != nil && t.Hold.Token() == term {
		m.mu.Lock()
		m.polled = time.Time{}
		m.mu.Unlock()
		chans.Signal(m.rows)
	}
}
