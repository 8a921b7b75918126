package permit

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// Stand is a place in the server's queue at a semaphore's gate. Its turn is the right to look for slots. See the
// post of package waitroom.
type Stand interface {
	Ready() <-chan struct{} // gets a value when a turn begins
	Held() bool             // whether it is its turn
	Placed() bool           // whether a session stands there
	Err() error             // why there will be no turn
	Pass()                  // lets the next process come to the gate, and queues behind it
	Park()                  // lets the next process come to the gate, and is away from there until Again
	Again()
	Leave()
}

// Config is what a desk needs.
type Config struct {
	TTL    time.Duration
	Ledger *sidecar.Sidecar
	Pooled bool                          // no session can stand at a gate
	Queue  func(gate advisory.Key) Stand // stands at a gate; nil if Pooled
	Report func(event string, err error) // for the log
}

// Desk has the semaphores that this process uses.
type Desk struct {
	cfg Config

	mu      sync.Mutex
	lines   map[string]*Line
	gates   map[int64]*Line
	blocks  map[*block]struct{} // that hold slots
	session *sidecar.Session
	failure error // why there is no session
	leaving departures
	renewed time.Time
	writes  int // to the table of slots since it was last looked at
	compact time.Time
	keeping bool
	closed  bool
	drained chan struct{} // closed when the desk is and nothing is left to free

	ctx     context.Context //nolint:containedctx // of the goroutines
	stop    context.CancelFunc
	workers sync.WaitGroup
}

var (
	_ sidecar.Observer = (*Desk)(nil)
	_ sidecar.Lender   = (*Desk)(nil)
)

// New makes a desk. It opens no session before the first Line.
func New(cfg Config) *Desk {
	ctx, stop := context.WithCancel(context.Background())
	d := &Desk{
		cfg: cfg, lines: map[string]*Line{}, gates: map[int64]*Line{}, blocks: map[*block]struct{}{},
		drained: make(chan struct{}), ctx: ctx, stop: stop,
	}
	cfg.Ledger.Observe(d)
	cfg.Ledger.Subscribe(freedPrefix, d.notified)
	cfg.Ledger.Subscribe(resizedPrefix, d.notified)
	return d
}

// Notifications begin with what has happened; the gate of the semaphore follows.
const (
	freedPrefix   = "slot:"
	resizedPrefix = "size:"
)

// actions are what a step decided to do after the desk's mutex is free.
type actions struct {
	now    time.Time
	ops    []*sidecar.Op
	wake   []*waiter
	freed  []*Permit
	over   []*Permit
	reason error // why those in over are
	notify []int64
}

// run carries out what a step decided. With help, the caller will read the answers.
func (d *Desk) run(a *actions, session *sidecar.Session, help bool) {
	for _, p := range a.over {
		p.Finish(a.reason)
	}
	for _, w := range a.wake {
		w.ch <- struct{}{}
	}
	for _, p := range a.freed {
		p.ch <- struct{}{}
	}
	for _, gate := range a.notify {
		d.cfg.Ledger.Notify(freedPrefix + strconv.FormatInt(gate, 10))
	}
	if len(a.ops) > 0 {
		session.Submit(a.ops...)
		if !help {
			session.Attend()
		}
	}
}

// step runs f with the mutex and then carries out what it decided.
func (d *Desk) step(f func(a *actions)) {
	a := actions{now: time.Now()}
	d.mu.Lock()
	f(&a)
	session := d.session
	d.mu.Unlock()
	d.run(&a, session, false)
}

// Line returns the line of a semaphore, and makes it if there is none.
func (d *Desk) Line(id int32, name string, gate advisory.Key, capacity int) *Line {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := d.lines[name]
	if l == nil {
		l = &Line{desk: d, name: name, gate: gate, poke: make(chan struct{}, 1)}
		d.lines[name], d.gates[gate.ID] = l, l
	}
	l.id, l.capacity = id, capacity
	return l
}

// Opened implements [sidecar.Observer]. Behind a pooler the slots that an answer which was lost may have granted are
// freed before anything is claimed: afterwards nobody could tell them from others.
func (d *Desk) Opened(s *sidecar.Session) {
	if !d.cfg.Pooled {
		d.step(func(a *actions) { d.use(s, a) })
		return
	}
	a := actions{now: time.Now()}
	d.mu.Lock()
	d.renew(s, &a, func(a *actions) { d.use(s, a) })
	d.mu.Unlock()
	d.run(&a, s, false)
}

// use makes a session the one to work with.
func (d *Desk) use(s *sidecar.Session, a *actions) {
	if !s.Alive() {
		return // it has died already, and that was told
	}
	d.session, d.failure = s, nil
	d.free(a)
	for _, l := range d.lines {
		l.advance(a)
	}
}

// LetGo implements [sidecar.Lender]: who holds nothing, wants nothing and has nothing under way needs no session.
func (d *Desk) LetGo(s *sidecar.Session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil && d.session != s {
		return false
	}
	if len(d.blocks) > 0 || !d.leaving.none() {
		return false
	}
	for _, l := range d.lines {
		if l.waiters.Len() > 0 || l.claiming || l.inquiring || l.heading {
			return false
		}
	}
	d.session = nil
	return true
}

// Failed implements [sidecar.Observer].
func (d *Desk) Failed(err error) {
	d.step(func(a *actions) {
		d.failure = err
		for _, l := range d.lines {
			l.refuse(fmt.Errorf("%w: there is no connection: %w", lockerr.NotAcquired, err), (*waiter).tries, a)
		}
	})
}

// Lost implements [sidecar.Observer]. Without a pooler the end of the session gives its slots to others.
func (d *Desk) Lost(s *sidecar.Session, cause error) {
	a := actions{now: time.Now(), reason: fmt.Errorf("%w: %w", lockerr.Lost, cause)}
	d.mu.Lock()
	if d.session == s {
		d.session = nil
	}
	if !d.cfg.Pooled {
		for b := range d.blocks {
			if b.session == s {
				d.lose(b, a.reason, &a)
			}
		}
		d.leaving.answer(every, a.reason, &a)
		d.leaving.forget(every) // with the session they are free
	}
	d.dismiss(&a)
	d.mu.Unlock()
	d.run(&a, nil, false)
}

// lose ends the permits of a block.
func (d *Desk) lose(b *block, reason error, a *actions) {
	b.lost = reason
	delete(d.blocks, b)
	for _, p := range b.owners {
		a.over = append(a.over, p)
	}
	clear(b.owners)
}

// notified takes a notification: slots were released, or a capacity was changed.
func (d *Desk) notified(payload string) {
	number, freed := strings.CutPrefix(payload, freedPrefix)
	gate, err := strconv.ParseInt(strings.TrimPrefix(number, resizedPrefix), 10, 64)
	if err != nil {
		return
	}
	d.step(func(a *actions) {
		l := d.gates[gate]
		if l == nil {
			return
		}
		chans.Signal(l.poke)
		if !freed && l.waiters.Len() > 0 {
			l.inquire(a)
		}
	})
}

// Close ends the desk: waiters are answered with Closed, permits are freed and their holders told. It waits for the
// desk's goroutines until ctx ends; call Wait when the links are gone.
func (d *Desk) Close(ctx context.Context) {
	d.step(func(a *actions) {
		d.closed = true
		a.reason = errClosed
		for _, l := range d.lines {
			l.refuse(lockerr.Closed, func(*waiter) bool { return true }, a)
		}
		for b := range d.blocks {
			for slot := range b.owners {
				d.leaving.fresh = append(d.leaving.fresh, &leave{block: b, slots: []int32{slot}})
			}
			d.lose(b, a.reason, a)
		}
		d.free(a)
		d.dismiss(a)
	})
	d.stop()
	ended := make(chan struct{})
	go func() {
		<-d.drained
		d.workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done(): // what they wait for ends with the links
	}
}

// drain notes that a desk which is closed has nothing left to free, and will be granted nothing. The caller holds the
// mutex.
func (d *Desk) drain() {
	if !d.closed || !d.leaving.none() {
		return
	}
	for _, l := range d.lines {
		if l.claiming {
			return
		}
	}
	if !chans.Closed(d.drained) {
		close(d.drained)
	}
}

// dismiss answers, once the desk is closed, those whose slots nobody will free any more.
func (d *Desk) dismiss(a *actions) {
	if d.closed && d.session == nil {
		d.leaving.answer(every, errClosed, a)
		d.leaving.forget(every)
	}
	d.drain()
}

var errClosed = fmt.Errorf("%w: %w", lockerr.Lost, lockerr.ClosedLoss)

// Wait waits for the desk's goroutines, after Close and when the links are gone.
func (d *Desk) Wait() { d.workers.Wait() }
