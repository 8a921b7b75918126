package permit

import (
	"context"
	"math/rand/v2"
	"time"
)

// head sends a goroutine to stand in the server's queue for those who wait. The caller holds the mutex.
func (l *Line) head() {
	if l.heading || l.desk.closed {
		return
	}
	l.heading = true
	ctx, cancel := context.WithCancel(l.desk.ctx)
	l.leave = cancel
	l.desk.workers.Add(1)
	go l.lead(ctx, cancel)
}

// lead stands in the queue until nobody waits any more.
func (l *Line) lead(ctx context.Context, cancel context.CancelFunc) {
	d := l.desk
	defer d.workers.Done()
	var stand Stand
	defer func() {
		if stand != nil {
			stand.Leave()
		}
	}()
	for {
		err := l.takeTurn(ctx, &stand)
		unwanted := ctx.Err() != nil
		cancel()
		done := false
		d.step(func(a *actions) {
			if err != nil && !unwanted {
				l.refuse(err, func(*waiter) bool { return true }, a)
			}
			done = l.waits == 0 || d.closed
			if done {
				l.heading, l.leave = false, nil
				l.advance(a) // for those who only try, and have come meanwhile
				return
			}
			ctx, cancel = context.WithCancel(d.ctx)
			l.leave = cancel
		})
		if done {
			cancel()
			return
		}
	}
}

// takeTurn waits for its turn and then for slots, and lets the next process to the gate. Who cannot claim, because it
// has no session, does not stand in the way of those who can. Who cannot stand at the gate, because of a pooler or
// because all sessions that could are busy, looks every now and then.
func (l *Line) takeTurn(ctx context.Context, stand *Stand) error {
	d := l.desk
	leave := func() {
		if *stand != nil {
			(*stand).Leave()
			*stand = nil
		}
	}
	if d.cfg.Ledger.Current() == nil {
		leave()
		if _, err := d.cfg.Ledger.Holder(ctx); err != nil {
			l.pause(ctx, pollEvery)
			return nil
		}
	}
	if d.cfg.Pooled {
		l.look(ctx, nil)
		return nil
	}
	if l.isClaiming() { // for a wait that has ended: a turn could not be used before the answer
		leave()
		l.pause(ctx, pollPooled/8)
		return nil
	}
	if *stand == nil {
		*stand = d.cfg.Queue(l.gate)
	}
	defer (*stand).Pass()
	look := time.NewTicker(pollPooled)
	defer look.Stop()
	for {
		select {
		case <-(*stand).Ready():
			if err := (*stand).Err(); err != nil {
				return err
			}
			l.setAtGate(true)
			done := l.look(ctx, *stand)
			l.setAtGate(false)
			if done {
				return nil
			}
		case <-look.C:
			if !(*stand).Placed() && l.ask(ctx, nil) > 0 {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *Line) isClaiming() bool {
	l.desk.mu.Lock()
	defer l.desk.mu.Unlock()
	return l.claiming
}

func (l *Line) setAtGate(at bool) {
	l.desk.mu.Lock()
	l.atGate = at
	l.desk.mu.Unlock()
}

// look claims slots until some were granted, or ctx ends, or there is no session to claim with. It returns false if its
// turn is over before that: other keys needed the session, or a claim was not answered in time.
func (l *Line) look(ctx context.Context, stand Stand) (done bool) {
	every := pollEvery
	if stand == nil {
		every = pollPooled
	}
	for {
		switch {
		case l.ask(ctx, stand) > 0 || ctx.Err() != nil || (stand != nil && !l.desk.connected()):
			return true
		case stand != nil && !stand.Held():
			return false
		}
		l.pause(ctx, every)
	}
}

// pause lasts about so long, or until slots may be free.
func (l *Line) pause(ctx context.Context, about time.Duration) {
	timer := time.NewTimer(about/2 + rand.N(about)) //nolint:gosec // jitter, not a secret
	defer timer.Stop()
	select {
	case <-l.poke:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// connected says whether there is a session.
func (d *Desk) connected() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.session != nil
}

// ask makes the head's claim and returns how many permits were granted. When ctx ends nobody wants any. A turn is over
// when the answer takes longer than patience, and there is no other before it has come.
func (l *Line) ask(ctx context.Context, stand Stand) int {
	answer := make(chan int, 1)
	asked := false
	l.desk.step(func(a *actions) {
		if l.waiters.Len() > 0 && !l.claiming && l.missing == nil {
			asked = l.claim(a, answer)
		}
	})
	if !asked {
		return 0
	}
	var late <-chan time.Time
	if stand != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		late = timer.C
	}
	for {
		select {
		case granted := <-answer:
			return granted
		case <-ctx.Done():
			return 0
		case <-late:
			stand.Park()
			defer stand.Again()
		}
	}
}
