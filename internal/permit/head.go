package permit

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
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
	for {
		err := l.takeTurn(ctx)
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
// because it holds as many locks as it may, looks every now and then.
func (l *Line) takeTurn(ctx context.Context) error {
	d := l.desk
	if _, err := d.cfg.Ledger.Holder(ctx); err != nil {
		l.pause(ctx, pollEvery)
		return nil
	}
	if d.cfg.Pooled {
		l.look(ctx, nil)
		return nil
	}
	turn, err := d.cfg.Queue(ctx, l.gate)
	if errors.Is(err, lockerr.TooManyLocks) {
		l.look(ctx, nil)
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = turn.Release() }() // lost or released: the next process has its turn
	l.setAtGate(true)
	defer l.setAtGate(false)
	l.look(ctx, turn)
	return nil
}

func (l *Line) setAtGate(at bool) {
	l.desk.mu.Lock()
	l.atGate = at
	l.desk.mu.Unlock()
}

// look claims slots until some were granted, or ctx ends, or the turn does.
func (l *Line) look(ctx context.Context, turn Turn) {
	every := pollEvery
	if turn == nil {
		every = pollPooled
	}
	for {
		if l.ask(ctx) > 0 || ctx.Err() != nil || (turn != nil && (turn.Err() != nil || !l.desk.connected())) {
			return
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

// ask makes the head's claim and returns how many permits were granted. When ctx ends nobody wants any.
func (l *Line) ask(ctx context.Context) int {
	answer := make(chan int, 1)
	asked := false
	l.desk.step(func(a *actions) {
		if l.waiters.Len() > 0 && !l.claiming {
			asked = l.claim(a, answer)
		}
	})
	if !asked {
		return 0
	}
	select {
	case granted := <-answer:
		return granted
	case <-ctx.Done():
		return 0
	}
}
