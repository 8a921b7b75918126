package ledger

import (
	"cmp"
	"errors"
	"time"
)

// Lender is an [Observer] that works with the session whenever it likes.
type Lender interface {
	// LetGo has the observer forget the session, if it can do without one for now; it asks for another when it cannot.
	LetGo(s *Session) bool
}

// KeepWhile has the session kept as long as busy says so, though nothing is sent: somebody listens to it, or has rows
// that count only while it lives.
func (l *Ledger) KeepWhile(busy func() bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = append(l.busy, busy)
}

// use notes that the session is used.
func (l *Ledger) use() { l.used.Store(time.Now().UnixNano()) }

func (l *Ledger) idle() time.Duration { return cmp.Or(l.cfg.Idle, defaultIdle) }

var errIdle = errors.New("closed for want of use")

// restIfIdle closes the session if nobody has used it for a while and nobody needs it.
func (l *Ledger) restIfIdle() {
	quiet := func() bool { return time.Now().UnixNano()-l.used.Load() >= int64(l.idle()) }
	l.mu.Lock()
	s, busy, observers := l.session, l.busy, l.observers
	l.mu.Unlock()
	if s == nil || !quiet() {
		return
	}
	for _, b := range busy {
		if b() {
			return
		}
	}
	let := 0
	for _, o := range observers {
		if lender, ok := o.(Lender); ok && !lender.LetGo(s) {
			break
		}
		let++
	}
	l.mu.Lock()
	rest := let == len(observers) && quiet() && s.cause == nil && l.session == s && !l.closed
	if rest {
		l.session, l.resting = nil, true
		s.cause = errIdle
	}
	l.mu.Unlock()
	if rest {
		_ = s.link.Close(l.ctx) // nothing is held by it
		return
	}
	for _, o := range observers[:let] { // somebody came meanwhile
		if _, ok := o.(Lender); ok {
			o.Opened(s)
		}
	}
}
