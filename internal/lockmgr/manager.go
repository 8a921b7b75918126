package lockmgr

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/waitline"
)

// Config is what a manager needs.
type Config struct {
	Engine  engine.Engine
	MaxHeld int                           // keys held or asked for at the same time; 0 for what the engine says
	Report  func(event string, err error) // for the log
}

// Manager has the state of each key that this process holds or wants.
type Manager struct {
	engine  engine.Engine
	maxHeld int
	report  func(event string, err error)

	mu     sync.Mutex
	keys   map[advisory.Key]*keyState
	spare  []*keyState // to be used again
	held   int         // keys that an anchor holds
	closed bool
	down   error // why there is no anchor, if one could not be had

	signals sync.Pool // of channels that are empty and that nobody will write to
	timers  sync.Pool // that are stopped
	steps   sync.Pool // of actions that are empty
}

var _ engine.Manager = (*Manager)(nil)

// New makes a manager and starts its engine. On failure nothing is left open.
func New(ctx context.Context, cfg Config) (*Manager, error) {
	m := &Manager{engine: cfg.Engine, maxHeld: cfg.MaxHeld, report: cfg.Report, keys: map[advisory.Key]*keyState{}}
	m.signals.New = func() any { return make(chan struct{}, 1) }
	m.steps.New = func() any { return &actions{} }
	m.timers.New = func() any {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	if err := m.engine.Start(ctx, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Acquire waits for a grant of the key until ctx ends; with try, only for answers that are not other
// processes' to give. On failure nothing is held, and nothing will be.
func (m *Manager) Acquire(ctx context.Context, key advisory.Named, mode advisory.Mode, try bool) (*Hold, error) {
	r, err := m.Begin(ctx, key, mode, try)
	if err != nil {
		return nil, err
	}
	return r.Wait(ctx)
}

// Pending is an acquire under way. Wait must follow.
type Pending struct {
	manager *Manager
	w       *waiter
	begun   time.Time
}

// longestHelp bounds how long a request that may be waiting for other holders by now reads the answers of others.
const longestHelp = time.Second / 2

// Begin is the first part of Acquire. When the key is free and nobody else uses the anchor, the answer is there when it
// returns; it never waits for other holders.
func (m *Manager) Begin(ctx context.Context, key advisory.Named, mode advisory.Mode, try bool) (Pending, error) {
	if err := ctx.Err(); err != nil {
		return Pending{}, m.Ended(ctx)
	}
	w := m.newWaiter(ctx, mode, try, false)
	if mode == advisory.Shared {
		m.catchUp(ctx, key.Key)
	}
	a := m.step()
	begun := a.now
	m.mu.Lock()
	err := m.enter(key, w, a)
	m.mu.Unlock()
	var helping engine.Anchor
	if len(a.requests) > 0 {
		helping = a.anchors[0]
	}
	m.run(a, helping)
	if err != nil {
		return Pending{}, m.without(w, err)
	}
	if helping != nil {
		helping.Help(ctx, func() bool { return w.Woken() || time.Since(begun) > longestHelp })
	}
	return Pending{m, w, begun}, nil
}

// catchUp makes sure that the news of the anchor that holds a key are known: who comes may join in memory.
func (m *Manager) catchUp(ctx context.Context, key advisory.Key) {
	m.mu.Lock()
	var anchor engine.Anchor
	if e := m.keys[key]; e != nil && e.owned > 0 {
		anchor = e.anchor
	}
	m.mu.Unlock()
	if anchor != nil {
		anchor.CatchUp(ctx)
	}
}

// Within reports whether the request is answered, or ctx has ended, within a time from its beginning. It costs nothing if
// that is so at once, and little otherwise.
func (r Pending) Within(ctx context.Context, d time.Duration) bool {
	if r.w.Woken() {
		return true
	}
	t := r.manager.timers.Get().(*time.Timer) //nolint:forcetypeassert // there is nothing else in it
	t.Reset(d - time.Since(r.begun))
	defer func() {
		t.Stop()
		r.manager.timers.Put(t)
	}()
	return waitline.Within(ctx, r.w, t.C)
}

// Wait is the second part of Acquire, and gives its answer. Its context may end sooner than that of Begin.
func (r Pending) Wait(ctx context.Context) (*Hold, error) {
	m, w := r.manager, r.w
	err := w.Wait(ctx, m.abandon, func(w *waiter) { w.Value.hold.GiveBack() })
	switch {
	case errors.Is(err, waitline.ErrEnded) && w.Value.here:
		return nil, m.without(w, fmt.Errorf("%w: %w", lockerr.HeldHere, m.because(ctx)))
	case errors.Is(err, waitline.ErrEnded):
		return nil, m.without(w, m.Ended(ctx))
	case err != nil:
		return nil, m.without(w, err)
	}
	return &w.Value.hold, nil
}

// without takes back the signal of a waiter that has nothing, and returns its error.
func (m *Manager) without(w *waiter, err error) error {
	m.signals.Put(w.Value.hold.ch)
	return err
}

// abandon takes a waiter out of the line, unless it was answered.
func (m *Manager) abandon(w *waiter) bool {
	a := m.step()
	m.mu.Lock()
	e := w.Value.hold.key // in use for that key as long as somebody is in its line
	abandoned := e.waiters.Abandon(w)
	if abandoned {
		w.Value.here = e.owned > 0
		if e.waiters.Len() == 0 {
			m.queueHears(e, needless, nil)
		}
		m.advance(e, a) // those behind may fit where it did not
	}
	m.mu.Unlock()
	m.run(a, nil)
	return abandoned
}

// Ended is the error of a wait that the context ended.
func (m *Manager) Ended(ctx context.Context) error {
	return fmt.Errorf("%w: %w", lockerr.NotAcquired, m.because(ctx))
}

// because returns why a wait ended: its context, and what is wrong with the connection.
func (m *Manager) because(ctx context.Context) error {
	m.mu.Lock()
	down := m.down
	m.mu.Unlock()
	return lockerr.Ended(ctx, lockerr.NoConnection(down))
}

// step returns actions for a step that begins now.
func (m *Manager) step() *actions {
	a := m.steps.Get().(*actions) //nolint:forcetypeassert // there is nothing else in it
	a.now = time.Now()
	return a
}

// run carries out what a step decided, and takes its actions back. The caller will read the answers at the anchor of
// helping.
func (m *Manager) run(a *actions, helping engine.Anchor) {
	for _, d := range a.defects { // before anybody learns of a grant
		m.report("a key met an event that cannot come, and its connection is given up: a defect of pgbaton", d.what)
		if d.anchor != nil {
			d.anchor.Fail(&lockerr.LossError{Reason: lockerr.Defect, Cause: d.what})
		}
	}
	for _, w := range a.wake {
		w.Wake()
	}
	for _, h := range a.freed {
		h.ch <- struct{}{}
	}
	for _, h := range a.lost {
		h.Finish(lost(h.cause))
	}
	for start := 0; start < len(a.requests); {
		anchor, end := a.anchors[start], start+1
		for end < len(a.requests) && a.anchors[end] == anchor {
			end++
		}
		anchor.Submit(a.requests[start:end]...)
		if anchor != helping {
			anchor.Attend()
		}
		start = end
	}
	for _, anchor := range a.expire {
		_ = anchor.Expire() // the loss is told
	}
	a.reset()
	m.steps.Put(a)
}

// Close ends the manager and its engine: waiters are answered with Closed, holders lose their locks with it as the cause,
// and the engine gives all keys back. The error says that the server did not confirm it in time.
func (m *Manager) Close(ctx context.Context) error {
	a := m.step()
	m.mu.Lock()
	m.closed = true
	for _, e := range m.keys {
		m.refuse(e, lockerr.Closed, false, a)
		m.queueHears(e, needless, nil)
		m.forget(e)
	}
	var held []*Hold
	for _, e := range m.keys {
		for h := e.owners; h != nil; h = h.next {
			held = append(held, h)
		}
	}
	m.mu.Unlock()
	m.run(a, nil)
	for _, h := range held { // before the server gives what they hold to others
		h.Finish(lost(lockerr.ClosedLoss))
	}
	return m.engine.Close(ctx)
}
