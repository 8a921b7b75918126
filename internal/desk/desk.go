package desk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Config is what a desk needs to know.
type Config struct {
	MaxHeld  int           // locks held or asked for at the same time; 0 for an eighth of the lock table
	TTL      time.Duration // how often to look at the lock table, at the most
	PerLink  int           // locks on a link from which another link is wanted
	MaxLinks int
	Room     Room
	Dial     func(context.Context, link.Handler) (Link, int, error) // a link, and its server's lock table's size
	Hung     func()                                                 // a link's connection was closed
	Report   func(event string, err error)                          // for the log
}

// Room is where entries stand in the server's queue. Its methods are called with the desk's mutex held.
type Room interface {
	Enter(key advisory.Key) // may be called again for a key that has left
	Leave(key advisory.Key)
}

// Desk is the table of the keys that this process holds or wants.
type Desk struct {
	cfg Config

	mu        sync.Mutex
	entries   map[advisory.Key]*entry
	spare     []*entry // to be used again
	seats     []*seat
	gone      []Link // lost, their goroutines not yet waited for
	claims    int    // entries that are not idle
	held      int    // entries whose key a link holds
	closed    bool
	lockTable int   // room in the server's
	lastError error // of the last attempt to get a link, while there is none
	looked    time.Time
	crowded   error // what the last look at the lock table found, if too full

	signals sync.Pool     // of channels that are empty and that nobody will write to
	timers  sync.Pool     // that are stopped
	want    chan struct{} // another link is wanted
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// New makes a desk and opens its first link. On failure nothing is left open.
func New(ctx context.Context, cfg Config) (*Desk, error) {
	d := &Desk{cfg: cfg, entries: map[advisory.Key]*entry{}, want: make(chan struct{}, 1)}
	d.signals.New = func() any { return make(chan struct{}, 1) }
	d.timers.New = func() any {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	if err := d.open(ctx); err != nil {
		return nil, err
	}
	running, stop := context.WithCancel(context.Background())
	d.stop = stop
	d.workers.Add(1)
	go d.maintain(running) //nolint:contextcheck // it outlives this call
	return d, nil
}

// Acquire waits for a grant of the key until ctx ends; with try, only for answers that are not other
// processes' to give. On failure nothing is held, and nothing will be.
func (d *Desk) Acquire(ctx context.Context, key advisory.Key, mode advisory.Mode, try bool) (*Hold, error) {
	r, err := d.Begin(ctx, key, mode, try)
	if err != nil {
		return nil, err
	}
	return r.Wait(ctx)
}

// Request is an acquire under way. Wait must follow.
type Request struct {
	desk  *Desk
	key   advisory.Key
	w     *waiter
	begun time.Time
}

// longestHelp bounds how long a request that may be waiting for other holders by now reads the answers of others.
const longestHelp = time.Second / 2

// Begin is the first part of Acquire. When the key is free and nobody else uses the link, the answer is there when it
// returns; it never waits for other holders.
func (d *Desk) Begin(ctx context.Context, key advisory.Key, mode advisory.Mode, try bool) (Request, error) {
	if err := ctx.Err(); err != nil {
		return Request{}, d.Ended(ctx)
	}
	w := &waiter{mode: mode, try: try, ch: d.signals.Get().(chan struct{})} //nolint:forcetypeassert // there is nothing else in it
	w.until, _ = ctx.Deadline()
	if mode == advisory.Shared {
		d.catchUp(ctx, key)
	}
	a := actions{now: time.Now()}
	helping, err := d.enter(key, w, &a)
	if err != nil {
		return Request{}, err
	}
	d.run(&a, helping)
	if helping != nil {
		helping.link.Help(ctx, func() bool { return len(w.ch) > 0 || time.Since(a.now) > longestHelp })
	}
	return Request{d, key, w, a.now}, nil
}

// catchUp makes sure that the news of the link that holds a key are known: who comes may join in memory.
func (d *Desk) catchUp(ctx context.Context, key advisory.Key) {
	d.mu.Lock()
	var s *seat
	if e := d.entries[key]; e != nil && e.owned > 0 {
		s = e.seat
	}
	d.mu.Unlock()
	if s != nil {
		s.link.CatchUp(ctx)
	}
}

// Within says whether the request is answered, or ctx has ended, within a time from its beginning. It costs nothing if
// that is so at once, and little otherwise.
func (r Request) Within(ctx context.Context, d time.Duration) bool {
	if len(r.w.ch) > 0 {
		return true
	}
	t := r.desk.timers.Get().(*time.Timer) //nolint:forcetypeassert // there is nothing else in it
	t.Reset(d - time.Since(r.begun))
	defer func() {
		t.Stop()
		r.desk.timers.Put(t)
	}()
	select {
	case <-r.w.ch:
		r.w.ch <- struct{}{} // for Wait; there is room again, and nobody else writes or reads
		return true
	case <-ctx.Done():
		return true
	case <-t.C:
		return false
	}
}

// Wait is the second part of Acquire, and gives its answer. Its context may end sooner than that of Begin.
func (r Request) Wait(ctx context.Context) (*Hold, error) {
	d, w := r.desk, r.w
	select {
	case <-w.ch:
	case <-ctx.Done():
		if d.abandon(r.key, w) {
			return nil, d.Ended(ctx)
		}
		<-w.ch // it was answered meanwhile
	}
	if w.err != nil {
		d.signals.Put(w.ch)
		return nil, w.err
	}
	if ctx.Err() != nil { // when both are true, fail: the caller has stopped waiting
		w.hold.GiveBack() //nolint:contextcheck // ctx has ended
		return nil, d.Ended(ctx)
	}
	return &w.hold, nil
}

// enter puts a waiter into its key's queue and returns the link to help, if something was started there.
func (d *Desk) enter(key advisory.Key, w *waiter, a *actions) (*seat, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, lockerr.Closed
	}
	e := d.entryFor(key)
	if w.try && !e.admits(w.mode) {
		return nil, lockerr.NotAcquired
	}
	e.push(w)
	d.advance(e, a)
	if len(a.ops) > 0 {
		return e.seat, nil
	}
	return nil, nil
}

// abandon takes a waiter out of the queue, unless it was answered.
func (d *Desk) abandon(key advisory.Key, w *waiter) bool {
	a := actions{now: time.Now()}
	d.mu.Lock()
	if w.answered {
		d.mu.Unlock()
		return false
	}
	e := d.entries[key]
	e.drop(w)
	if e.first == nil {
		d.leave(e)
	}
	d.advance(e, &a) // those behind may fit where it did not
	d.mu.Unlock()
	d.run(&a, nil)
	return true
}

// Ended is the error of a wait that the context ended.
func (d *Desk) Ended(ctx context.Context) error {
	d.mu.Lock()
	lastError := d.lastError
	d.mu.Unlock()
	err := fmt.Errorf("%w: %w", lockerr.NotAcquired, ctx.Err())
	if cause := context.Cause(ctx); !errors.Is(ctx.Err(), cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if lastError != nil {
		err = fmt.Errorf("%w; there is no connection: %w", err, lastError)
	}
	return err
}

// run carries out what a step decided. The caller will read the answers on the link of helping.
func (d *Desk) run(a *actions, helping *seat) {
	for _, w := range a.wake {
		w.ch <- struct{}{}
	}
	for _, h := range a.freed {
		h.ch <- struct{}{}
	}
	for _, h := range a.lost {
		h.end()
	}
	for _, s := range a.shifted {
		close(s.done)
	}
	for start := 0; start < len(a.ops); {
		s := a.ops[start].seat
		var ops []*link.Op
		for ; start < len(a.ops) && a.ops[start].seat == s; start++ {
			ops = append(ops, a.ops[start].op)
		}
		s.link.Submit(ops...)
		if s != helping {
			s.link.Attend()
		}
	}
	for _, s := range a.expire {
		s.link.Fail(s.link.Expired())
	}
}

// Close ends the desk: waiters are answered with Closed, holders lose their locks with it as the cause,
// the links unlock everything and are closed. The error says that the server did not confirm it in time.
func (d *Desk) Close(ctx context.Context) error {
	a := actions{now: time.Now()}
	d.mu.Lock()
	d.closed = true
	for _, e := range d.entries {
		d.refuse(e, lockerr.Closed, false, &a)
		d.leave(e)
		d.settleTurn(e, true)
	}
	d.mu.Unlock()
	d.run(&a, nil)
	d.stop()
	d.workers.Wait()
	d.mu.Lock()
	seats := d.seats
	var held []*Hold
	for _, e := range d.entries {
		for h := e.owners; h != nil; h = h.next {
			held = append(held, h)
		}
	}
	d.mu.Unlock()
	for _, h := range held { // before the server gives what they hold to others
		h.Finish(lost(lockerr.ClosedLoss))
	}
	var err error
	for _, s := range seats {
		err = errors.Join(err, s.link.Close(ctx))
	}
	d.bury(ctx)
	return err
}

// bury waits for the goroutines of lost links, which are about to end.
func (d *Desk) bury(ctx context.Context) {
	d.mu.Lock()
	gone := d.gone
	d.gone = nil
	d.mu.Unlock()
	for _, l := range gone {
		_ = l.Close(ctx) // its loss was reported
	}
}
