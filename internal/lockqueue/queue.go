package lockqueue

import (
	"context"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Config is what a queue needs.
type Config struct {
	TTL    time.Duration
	Budget *session.Budget
	Dial   func(context.Context) (*session.Session, error)
	Report func(event string, err error) // for the log
	// Waiting is the lock manager, for which the sessions wait. It is called without the queue's mutex.
	Waiting engine.Waiting
}

// Queue is the set of waiting sessions and the line before them.
type Queue struct {
	cfg Config

	mu       sync.Mutex
	tickets  map[advisory.Key]*ticket
	waits    map[*Wait]struct{}
	line     []*ticket // without a session, longest wait first
	idle     int
	ended    int // waits, ever
	sweeping bool
	closed   bool

	wake    chan struct{} // a token for an idle queuer
	ctx     context.Context
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// ticket is what waits: a key, or a wait. Guarded by the queue's mutex.
type ticket struct {
	key    advisory.Key
	wait   *Wait   // instead of a key
	queuer *queuer // nil while in line
	left   bool    // nobody wants it any longer
}

// New makes a queue without sessions; they are opened when somebody waits.
func New(cfg Config) *Queue {
	ctx, stop := context.WithCancel(context.Background())
	return &Queue{cfg: cfg, tickets: map[advisory.Key]*ticket{}, waits: map[*Wait]struct{}{}, wake: make(chan struct{}, 1), ctx: ctx, stop: stop}
}

// Enter starts to wait for a key. It returns at once.
func (q *Queue) Enter(key advisory.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	if t := q.tickets[key]; t != nil {
		t.left = false
		return
	}
	t := &ticket{key: key}
	q.tickets[key] = t
	q.line = append(q.line, t)
	q.assign()
}

// assign makes sure that a session works for the line. The caller holds mu.
func (q *Queue) assign() {
	if q.closed {
		return
	}
	switch {
	case q.idle > 0:
		chans.Signal(q.wake)
	case q.cfg.Budget.Take(session.Waiting):
		q.workers.Add(1)
		go (&queuer{queue: q}).run()
	}
	if !q.sweeping && len(q.line) > 0 {
		q.sweeping = true
		q.workers.Add(1)
		go q.sweep()
	}
}

// Leave stops waiting for a key. It returns at once.
func (q *Queue) Leave(key advisory.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tickets[key]
	if t == nil {
		return
	}
	q.ended++
	if t.queuer != nil {
		t.left = true
		t.queuer.abandon()
		return
	}
	delete(q.tickets, key)
	q.dequeue(t)
}

// dequeue takes a ticket out of the line.
func (q *Queue) dequeue(t *ticket) {
	for i, other := range q.line {
		if other == t {
			q.line = append(q.line[:i], q.line[i+1:]...)
			return
		}
	}
}

// next gives a queuer the key that has waited longest; nil when there is none.
func (q *Queue) next(p *queuer) *ticket {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.line) == 0 {
		return nil
	}
	t := q.line[0]
	q.line = q.line[1:]
	t.queuer = p
	if len(q.line) > 0 {
		q.assign() // the call that came with this key may have been for two
	}
	return t
}

// release ends a queuer's work on a ticket: it goes back into the line, or away if nobody wants it.
func (q *Queue) release(t *ticket, front bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t.queuer = nil
	switch {
	case t.wait != nil && (t.left || t.wait.busy): // it comes back by itself, or never
	case t.left:
		delete(q.tickets, t.key)
	case front:
		q.line = append([]*ticket{t}, q.line...)
		if q.idle > 0 {
			q.assign() // the queuer that failed will pause
		}
	default:
		q.line = append(q.line, t)
	}
}

// wanted reports whether anybody still waits for the key, and whether other keys wait for a queuer.
func (q *Queue) wanted(t *ticket) (wanted, others bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !t.left, len(q.line) > 0
}

// A sweep is one round trip, but costs the server a try for each key in line. Where waits end often, with or without
// success, keys are being released, and a key in line must not wait for a session while it is free. Where none
// ends, a sweep finds nothing.
const (
	sweepOften  = 20 * time.Millisecond
	sweepSeldom = time.Second
	sweepPerKey = 2 * time.Millisecond // at the least, between sweeps
)

// sweep tries the keys in line, as long as there are any.
func (q *Queue) sweep() {
	defer q.workers.Done()
	pause, seen := sweepOften, 0
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-timer.C:
		}
		q.mu.Lock()
		keys := make([]advisory.Key, 0, len(q.line))
		for _, t := range q.line {
			if t.wait == nil { // a Wait has its keys tried by its owner
				keys = append(keys, t.key)
			}
		}
		if len(q.line) == 0 {
			q.sweeping = false
			q.mu.Unlock()
			return
		}
		q.assign() // the budget may allow another place by now
		pause *= 2
		if q.ended != seen {
			pause, seen = sweepOften, q.ended
		}
		q.mu.Unlock()
		if len(keys) > 0 {
			q.cfg.Waiting.Sweep(keys)
		}
		pause = min(max(pause, time.Duration(len(keys))*sweepPerKey), sweepSeldom)
		timer.Reset(pause)
	}
}

// GiveWay asks one of the waiting sessions to leave for a session that is needed more, without waiting for the end of its slice.
func (q *Queue) GiveWay() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.tickets {
		if t.queuer != nil && t.queuer.calling {
			t.queuer.abandon()
			return
		}
	}
	for wait := range q.waits {
		if queuer := wait.ticket.queuer; queuer != nil {
			queuer.abandon()
			chans.Signal(wait.nudge)
			return
		}
	}
}

// Done returns a channel that is closed when the queue is: no wait has a turn after that.
func (q *Queue) Done() <-chan struct{} { return q.ctx.Done() }

// Close ends all waits and waits for the queue's goroutines.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	for _, t := range q.tickets {
		if t.queuer != nil {
			t.left = true
			t.queuer.abandon()
		}
	}
	for wait := range q.waits {
		if queuer := wait.ticket.queuer; queuer != nil {
			wait.ticket.left = true
			queuer.abandon()
		}
	}
	q.mu.Unlock()
	q.stop()
	q.workers.Wait()
}
