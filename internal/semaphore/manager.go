package semaphore

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

// Place is a place in the server's queue at a semaphore's gate. Its turn is the right to look for slots.
type Place interface {
	Ready() <-chan struct{} // gets a value when a turn begins
	Held() bool             // whether it is its turn
	Placed() bool           // whether a session waits there
	Err() error             // why there will be no turn
	Pass()                  // lets the next process come to the gate, and queues behind it
	Park()                  // lets the next process come to the gate, and is away from there until Again
	Again()
	Leave()
}

// Config is what a manager needs.
type Config struct {
	TTL     time.Duration
	Sidecar *sidecar.Sidecar
	Pooled  bool                          // the sidecar has no session of its own
	Queue   func(gate advisory.Key) Place // waits at a gate; nil if no session can
	Report  func(event string, err error) // for the log
}

// Manager has the semaphores that this process uses.
type Manager struct {
	cfg     Config
	sidecar sessions

	mu      sync.Mutex
	life    lifetime
	lines   map[string]*Line
	gates   map[int64]*Line
	claims  map[*claim]struct{} // that hold slots
	session connection          // nil if there is none
	failure error               // why there is none
	returns giveBacks
	renewed time.Time // when the last renewal began
	renews  bool      // the goroutine that renews runs
	writes  int       // to the table of slots since it was last looked at
	compact time.Time // when it may be looked at again
	running int       // goroutines

	noneLeft chan struct{} // closed when the manager is empty
	gone     chan struct{} // closed when it has ended

	ctx     context.Context //nolint:containedctx // of the goroutines
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// New makes a manager. It opens no session before the first Line.
func New(cfg Config) *Manager {
	m := newManager(cfg, realSessions{cfg.Sidecar})
	cfg.Sidecar.Observe(observer{m})
	cfg.Sidecar.Subscribe(freedPrefix, m.notified)
	cfg.Sidecar.Subscribe(resizedPrefix, m.notified)
	return m
}

func newManager(cfg Config, s sessions) *Manager {
	ctx, stop := context.WithCancel(context.Background())
	return &Manager{
		cfg: cfg, sidecar: s, lines: map[string]*Line{}, gates: map[int64]*Line{}, claims: map[*claim]struct{}{},
		noneLeft: make(chan struct{}), gone: make(chan struct{}), ctx: ctx, stop: stop,
	}
}

// Notifications begin with what has happened; the gate of the semaphore follows.
const (
	freedPrefix   = "slot:"
	resizedPrefix = "size:"
)

// actions are what a step decided to do after the manager's mutex is free.
type actions struct {
	now    time.Time
	ops    []*sidecar.Op
	wake   []*waiter
	freed  []*Permit
	lost   []*Permit
	reason error // why those in lost are
	notify []int64

	defects []error
}

// run carries out what a step decided. With help, the caller will read the answers.
func (m *Manager) run(a *actions, s connection, help bool) {
	for _, p := range a.lost { // before anybody learns of a grant
		p.Finish(a.reason)
	}
	for _, defect := range a.defects {
		m.cfg.Report("a semaphore met an event that cannot come, and its permits are given up: a defect of pgbaton", defect)
	}
	for _, w := range a.wake {
		w.Wake()
	}
	for _, p := range a.freed {
		p.freed <- struct{}{}
	}
	for _, gate := range a.notify {
		m.sidecar.Notify(freedPrefix + strconv.FormatInt(gate, 10))
	}
	if len(a.ops) > 0 {
		s.Submit(a.ops...)
		if !help {
			s.Attend()
		}
	}
}

// step runs f with the mutex and then carries out what it decided.
func (m *Manager) step(f func(a *actions)) {
	a := actions{now: time.Now()}
	m.mu.Lock()
	f(&a)
	s := m.session
	m.mu.Unlock()
	m.run(&a, s, false)
}

// start starts a goroutine of the manager's. The caller holds the mutex.
func (m *Manager) start(f func()) {
	m.running++
	m.workers.Go(func() {
		f()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.running--
		m.settle()
	})
}

// Line returns the line of a semaphore, and makes it if there is none.
func (m *Manager) Line(id int32, name string, gate advisory.Key, capacity int) *Line {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lines[name]
	if l == nil {
		l = &Line{manager: m, name: name, gate: gate, poke: make(chan struct{}, 1)}
		m.lines[name], m.gates[gate.ID] = l, l
	}
	l.id, l.capacity = id, capacity
	return l
}

// opened is told of a new session. Behind a pooler the slots that an answer which was lost may have granted are
// freed before anything is claimed: afterwards nobody could tell them from others.
func (m *Manager) opened(s connection) {
	if !m.cfg.Pooled {
		m.step(func(a *actions) { m.use(s, a) })
		return
	}
	a := actions{now: time.Now()}
	m.mu.Lock()
	m.renew(s, &a, func(a *actions) { m.use(s, a) })
	m.mu.Unlock()
	m.run(&a, s, false)
}

// use makes a session the one to work with.
func (m *Manager) use(s connection, a *actions) {
	if !s.Alive() {
		return // it has died already, and that was told
	}
	m.session, m.failure = s, nil
	m.free(a)
	for _, l := range m.lines {
		l.advance(a)
	}
}

// letGo has the manager forget a session of which it has no need: it holds nothing, wants nothing and has nothing
// under way.
func (m *Manager) letGo(s connection) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session != nil && m.session != s {
		return false
	}
	if len(m.claims) > 0 || !m.returns.none() {
		return false
	}
	for _, l := range m.lines {
		if l.waiters.Len() > 0 || l.state != idle || l.lookup != noLookup {
			return false
		}
	}
	m.session = nil
	return true
}

// failed is told that there is no session, and that one could not be opened.
func (m *Manager) failed(err error) {
	m.step(func(a *actions) {
		m.failure = err
		for _, l := range m.lines {
			l.refuse(fmt.Errorf("%w: %w", lockerr.NotAcquired, lockerr.NoConnection(err)), tries, a)
		}
	})
}

// lost is told of the end of a session. Without a pooler that gives its slots to others.
func (m *Manager) lost(s connection, cause error) {
	a := actions{now: time.Now(), reason: fmt.Errorf("%w: %w", lockerr.Lost, cause)}
	m.mu.Lock()
	if m.session == s {
		m.session = nil
	}
	if !m.cfg.Pooled {
		for c := range m.claims {
			if c.session == s {
				m.lose(c, a.reason, &a)
			}
		}
		m.returns.answer(every, a.reason, &a)
		m.returns.forget(every) // with the session they are free
	}
	m.dismiss(&a)
	m.mu.Unlock()
	m.run(&a, nil, false)
}

// lose ends the permits of a claim.
func (m *Manager) lose(c *claim, reason error, a *actions) {
	c.lost = reason
	delete(m.claims, c)
	for _, p := range c.owners {
		a.lost = append(a.lost, p)
	}
	clear(c.owners)
}

// notified takes a notification: slots were released, or a capacity was changed.
func (m *Manager) notified(payload string) {
	number, freed := strings.CutPrefix(payload, freedPrefix)
	gate, err := strconv.ParseInt(strings.TrimPrefix(number, resizedPrefix), 10, 64)
	if err != nil {
		return
	}
	m.step(func(a *actions) {
		l := m.gates[gate]
		if l == nil {
			return
		}
		chans.Signal(l.poke)
		if !freed && l.waiters.Len() > 0 {
			l.lookUp(ofCapacity, a)
		}
	})
}

// Close ends the manager: waiters are answered with Closed, permits are freed and their holders told. It waits for
// that and for the manager's goroutines until ctx ends. Wait follows when the sidecar's connection is gone.
func (m *Manager) Close(ctx context.Context) {
	m.step(func(a *actions) {
		m.life = max(m.life, closing)
		a.reason = errClosed
		for _, l := range m.lines {
			l.refuse(lockerr.Closed, everybody, a)
		}
		for c := range m.claims {
			for slot := range c.owners {
				m.returns.fresh = append(m.returns.fresh, &giveBack{claim: c, slots: []int32{slot}})
			}
			m.lose(c, a.reason, a)
		}
		m.free(a)
		m.dismiss(a)
	})
	m.stop()
	select {
	case <-m.gone:
	case <-ctx.Done(): // what it waits for ends with the sidecar's connection
	}
}

// Wait waits for the manager's goroutines, after Close and when the sidecar's connection is gone.
func (m *Manager) Wait() { m.workers.Wait() }

// dismiss answers, once the manager is closed, the releases whose slots nobody will free.
func (m *Manager) dismiss(a *actions) {
	if m.life != open && m.session == nil {
		m.returns.answer(every, errClosed, a)
		m.returns.forget(every)
	}
	m.settle()
}

// settle takes a closed manager as far as it goes in its life. The caller holds the mutex.
func (m *Manager) settle() {
	if m.life == closing && m.returns.none() && !m.asks() {
		m.life = empty
		close(m.noneLeft)
	}
	if m.life == empty && m.running == 0 {
		m.life = ended
		close(m.gone)
	}
}

// asks reports whether a claim is under way.
func (m *Manager) asks() bool {
	for _, l := range m.lines {
		if l.state.asking() {
			return true
		}
	}
	return false
}

var errClosed = fmt.Errorf("%w: %w", lockerr.Lost, lockerr.ClosedLoss)
