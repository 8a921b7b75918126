package sidecar

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

// StayOpenWhile has the session kept as long as busy says so, though nothing is sent: somebody listens to it, or has rows
// that count only while it lives.
func (c *Sidecar) StayOpenWhile(busy func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = append(c.busy, busy)
}

// use notes that the session is used.
func (c *Sidecar) use() { c.used.Store(time.Now().UnixNano()) }

func (c *Sidecar) idle() time.Duration { return cmp.Or(c.cfg.Idle, defaultIdle) }

var errIdle = errors.New("closed for want of use")

// closeIfIdle closes the session if nobody has used it for a while and nobody needs it.
func (c *Sidecar) closeIfIdle() {
	quiet := func() bool { // nobody is about to use it, either
		return c.asking.Load() == 0 && time.Now().UnixNano()-c.used.Load() >= int64(c.idle())
	}
	c.mu.Lock()
	s, busy, observers := c.session, c.busy, c.observers
	c.mu.Unlock()
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
	c.mu.Lock()
	idle := let == len(observers) && quiet() && s.cause == nil && c.session == s && !c.closed
	if idle {
		c.session, c.unused = nil, true
		s.cause = errIdle
	}
	c.mu.Unlock()
	if idle {
		c.retire(c.ctx, s)
		_ = s.close(c.ctx) // nothing is held by it
		return
	}
	for _, o := range observers[:let] { // somebody came meanwhile
		if _, ok := o.(Lender); ok {
			o.Opened(s)
		}
	}
}
