package semaphore

import (
	"context"
	"time"

	"github.com/pgbaton/pgbaton/internal/backoff"
)

// send sends the head to the queue of the processes. The caller holds the mutex.
func (l *Line) send() {
	ctx, cancel := context.WithCancel(l.manager.ctx)
	l.callOff = cancel
	l.manager.start(func() {
		h := head{line: l, ctx: ctx}
		h.run()
	})
}

// head is the goroutine that looks for slots for the waiters.
type head struct {
	line  *Line
	ctx   context.Context //nolint:containedctx // ends when the head is called off
	place Place           // in the queue; nil if it has none
}

// run goes to the queue, again and again, until nobody waits any longer.
func (h *head) run() {
	defer h.giveUpPlace()
	for {
		err := h.takeTurn()
		if !h.goesOn(err) {
			return
		}
	}
}

// goesOn reports whether the head is still wanted after a turn, or after an error for which there will be none.
func (h *head) goesOn(err error) (wanted bool) {
	l, m := h.line, h.line.manager
	m.step(func(a *actions) {
		if err != nil && h.ctx.Err() == nil {
			l.refuse(err, everybody, a)
		}
		l.callOff()
		if wanted = l.waits > 0 && m.life == open; wanted {
			h.ctx, l.callOff = context.WithCancel(m.ctx) // it may have been called off when the last waiters left
			return
		}
		l.callOff = nil
		l.happens(headLeft, a, nil)
		l.advance(a) // for tries that have come meanwhile
	})
	return wanted
}

// giveUpPlace gives the place in the queue back.
func (h *head) giveUpPlace() {
	if h.place != nil {
		h.place.Leave()
		h.place = nil
	}
}

// takeTurn waits for its turn and then for slots, and lets the next process to the gate. A head that cannot claim,
// because there is no session, does not block others. One that cannot wait at the gate, because of a
// pooler or because all sessions that could are busy, looks every now and then.
func (h *head) takeTurn() error {
	m := h.line.manager
	if !m.connected() {
		h.giveUpPlace()
	}
	if _, err := m.sidecar.Holder(h.ctx); err != nil {
		h.giveUpPlace()
		h.pause(pollEvery)
		return nil
	}
	if m.cfg.Queue == nil {
		h.lookForSlots(false)
		return nil
	}
	if h.line.asks() { // for waiters that have left: a turn could not be used before the answer
		h.giveUpPlace()
		h.pause(pollPooled / 8)
		return nil
	}
	if h.place == nil {
		h.place = m.cfg.Queue(h.line.gate)
	}
	defer h.place.Pass()
	elsewhere := time.NewTicker(pollPooled)
	defer elsewhere.Stop()
	for {
		select {
		case <-h.place.Ready():
			if err := h.place.Err(); err != nil {
				return err
			}
			h.line.note(turnBegan)
			done := h.lookForSlots(true)
			h.line.note(turnEnded)
			if done {
				return nil
			}
		case <-elsewhere.C:
			if !h.place.Placed() && h.ask(false) > 0 {
				return nil
			}
		case <-h.ctx.Done():
			return nil
		}
	}
}

// asks reports whether a claim is under way.
func (l *Line) asks() bool {
	l.manager.mu.Lock()
	defer l.manager.mu.Unlock()
	return l.state.asking()
}

// note has the line handle an event that needs nothing.
func (l *Line) note(e event) { l.manager.step(func(a *actions) { l.happens(e, a, nil) }) }

// lookForSlots claims slots until some were granted, or the head is called off, or there is no session to claim with. It
// returns false if its turn at the gate is over before that: other keys needed the session, or a claim was not answered
// in time.
func (h *head) lookForSlots(atGate bool) (done bool) {
	every := pollPooled
	if atGate {
		every = pollEvery
	}
	for {
		switch {
		case h.ask(atGate) > 0 || h.ctx.Err() != nil || (atGate && !h.line.manager.connected()):
			return true
		case atGate && !h.place.Held():
			return false
		}
		h.pause(every)
	}
}

// pause lasts about so long, or until slots may be free.
func (h *head) pause(about time.Duration) {
	timer := time.NewTimer(backoff.About(about))
	defer timer.Stop()
	select {
	case <-h.line.poke:
	case <-timer.C:
	case <-h.ctx.Done():
	}
}

// connected reports whether there is a session.
func (m *Manager) connected() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.session != nil
}

// ask makes the head's claim and returns how many permits were granted. When the head is called off nobody wants any. A
// turn is over when the answer takes longer than patience, and there is no other before it has come.
func (h *head) ask(atGate bool) (granted int) {
	l := h.line
	answer := make(chan int, 1)
	asked := false
	l.manager.step(func(a *actions) {
		asked = l.mayAsk() && l.happens(look, a, answer) == claimAhead
	})
	if !asked {
		return 0
	}
	var late <-chan time.Time
	if atGate {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case granted = <-answer:
			return granted
		case <-h.ctx.Done():
			return 0
		case <-late:
			h.place.Park()
			defer h.place.Again()
		}
	}
}
