package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/waitline"
)

// Locks grants the leaders' locks.
type Locks interface {
	TryMany(ctx context.Context, keys []advisory.Named, mode advisory.Mode) ([]*lockmgr.Hold, []error)
}

// Sidecar is the session for rows and notifications.
type Sidecar interface {
	Query(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error)
	Notify(payload string)
	Subscribe(prefix string, f func(payload string)) (cancel func())
	Holder(ctx context.Context) (int64, error)
}

// Config is what a manager needs to know.
type Config struct {
	Locks   Locks
	Sidecar Sidecar
	Name    string                        // of the client, for people
	Report  func(event string, err error) // for the log
}

// Manager runs the candidates of one client.
type Manager struct {
	cfg Config

	mu       sync.Mutex
	contests map[string]*contest
	heldOff  map[string]time.Time // names that were resigned from, and until when the client holds back
	round    time.Time            // when all are tried next
	polled   time.Time            // when the goroutine that writes has looked at all rows of the own terms
	oldRows  []*oldRow            // rows to be cleared
	failed   bool                 // the last statement that wrote has failed
	closed   bool
	trying   bool // the goroutine that tries runs
	writing  bool // the goroutine that writes runs

	tries chan struct{} // something for the goroutine that tries
	rows  chan struct{} // something for the goroutine that writes

	stopped <-chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutines, which start and end again
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// contest is a name that somebody may lead, while the client has candidates for it. Guarded by the manager's mutex.
type contest struct {
	name       string
	key        advisory.Named
	candidates int
	waiters    waitline.Line[*Term] // the candidates that do not lead
	term       *Term                // nil unless led by this client
	soon       time.Time            // when to try it apart from the rounds; zero for not at all
	lastError  error                // of the last try
}

// refuse answers all waiters with an error and returns them, to be woken. The caller holds the mutex.
func (p *contest) refuse(err error) (refused []*waiter) {
	for w := range p.waiters.All() {
		p.waiters.Answer(w, err)
		refused = append(refused, w)
	}
	return refused
}

// waiter is a candidate that waits for a term.
type waiter = waitline.Waiter[*Term]

// New makes a manager. It starts and sends nothing before there is a candidate.
func New(cfg Config) *Manager {
	m := &Manager{
		cfg: cfg, contests: map[string]*contest{}, heldOff: map[string]time.Time{},
		tries: make(chan struct{}, 1), rows: make(chan struct{}, 1),
	}
	m.ctx, m.stop = context.WithCancel(context.Background())
	m.stopped = m.ctx.Done()
	return m
}

// Busy reports whether there are candidates, or rows to be written.
func (m *Manager) Busy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.contests)+len(m.oldRows) > 0
}

// Candidate is the wish to lead, again and again.
type Candidate struct {
	manager *Manager
	contest *contest
}

// Join makes a candidate for a name, whose lock is key, until Leave.
func (m *Manager) Join(name string, key advisory.Named) (*Candidate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, lockerr.Closed
	}
	p := m.contests[name]
	if p == nil {
		p = &contest{name: name, key: key}
		m.contests[name] = p
	}
	p.candidates++
	if !m.trying {
		m.trying = true
		m.workers.Go(m.tryOn)
	}
	if !m.writing {
		m.writing = true
		m.workers.Go(m.writeOn)
	}
	return &Candidate{m, p}, nil
}

// Leave withdraws the candidate, which must not be waiting or leading.
func (c *Candidate) Leave() {
	m := c.manager
	m.mu.Lock()
	if c.contest.candidates--; c.contest.candidates == 0 {
		delete(m.contests, c.contest.name)
	}
	m.mu.Unlock()
	chans.Signal(m.tries) // there may be nothing left to do
	chans.Signal(m.rows)
}

// Elect waits until the candidate leads, or ctx ends.
func (c *Candidate) Elect(ctx context.Context) (*Term, error) {
	m, p := c.manager, c.contest
	w := &waiter{}
	w.Init(nil)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, lockerr.Closed
	}
	p.waiters.Push(w)
	if p.waiters.Len() == 1 && p.term == nil {
		p.soon = time.Now()
		chans.Signal(m.tries)
	}
	m.mu.Unlock()
	var lastError error
	abandon := func(w *waiter) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		lastError = p.lastError
		return p.waiters.Abandon(w)
	}
	err := w.Wait(ctx, abandon, func(w *waiter) { m.decline(w.Value) })
	switch {
	case errors.Is(err, waitline.ErrEnded):
		return nil, ended(ctx, lastError)
	case err != nil:
		return nil, err
	}
	return w.Value, nil
}

// decline ends a term in which nobody has worked. The candidate does not wait for it, Close does. Its row may have
// been written, so the goroutine that writes must not end before it is cleared, though no candidate may be left.
func (m *Manager) decline(t *Term) {
	m.clearRow(t)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.workers.Go(func() { _ = t.End(m.ctx) })
	} // else Close waits for no new goroutines, and the lock manager releases everything
}

// ended is the error of a wait that ctx ended; lastError is how the last try failed.
func ended(ctx context.Context, lastError error) error {
	if lastError == nil || lastError == lockerr.NotAcquired { //nolint:errorlint // alone it says only that somebody else leads
		return lockerr.Ended(ctx, nil)
	}
	return lockerr.Ended(ctx, fmt.Errorf("the last try: %w", lastError))
}

// Close withdraws all candidates: waiters get Closed, leaders are asked to resign. It waits for the ends of
// the terms until ctx ends, and then for the manager's goroutines.
func (m *Manager) Close(ctx context.Context) {
	m.mu.Lock()
	m.closed = true
	var terms []*Term
	var refused []*waiter
	for _, p := range m.contests {
		refused = append(refused, p.refuse(lockerr.Closed)...)
		if p.term != nil {
			terms = append(terms, p.term)
		}
	}
	m.mu.Unlock()
	for _, w := range refused {
		w.Wake()
	}
	for _, t := range terms {
		t.askToEnd(fmt.Errorf("%w: %w", lockerr.Resigned, lockerr.Closed))
	}
	for _, t := range terms {
		select {
		case <-t.over:
		case <-ctx.Done():
		}
	}
	m.stop()
	m.workers.Wait()
}
