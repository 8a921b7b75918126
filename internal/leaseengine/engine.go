package leaseengine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Config is what the engine needs.
type Config struct {
	TTL    time.Duration
	Name   string // of the client, for people
	Pooled bool   // there is no session of the client's own
	Both   bool   // a grant is an advisory lock as well; not with Pooled
	// Capacity is how many keys a client may hold whose Config sets no number; 0 for [capacity].
	Capacity func() int
	// Dial opens a connection and runs the commands on it. The budget has a place for it.
	Dial   func(ctx context.Context, commands ...session.Command) (*session.Session, error)
	Budget *session.Budget
	Report func(event string, err error) // for the log
	// Notified is told of notifications that are not about turns, after Listen, and with "" when a session begins to hear them; it must not wait. Nil if
	// nobody listens.
	Notified func(payload string)
}

// capacity is what a client may hold whose Config sets no number: renewing more takes the server longer than is good for others.
const capacity = 10_000

// Engine is the lease engine.
type Engine struct {
	cfg     Config
	manager engine.Manager

	mu      sync.Mutex
	anchor  *anchor // to which the next request goes; nil if there is none
	orphans []int64 // holders of anchors that were lost: what they have is given back at the next contact
	queued  map[advisory.Key]*place
	called  []advisory.Key // queued keys to be asked for at once
	closed  bool

	want    chan struct{} // something for the goroutine that maintains
	poke    chan struct{} // something for the goroutine that polls
	ctx     context.Context
	stop    context.CancelFunc
	workers sync.WaitGroup
	pipes   sync.WaitGroup // the goroutines of pipelines
}

// place is the wait for a key that others have.
type place struct {
	since  time.Time
	marked bool // the row may name this process as the next
}

var (
	_ engine.Engine     = (*Engine)(nil)
	_ engine.Identified = (*Engine)(nil)
)

// New returns an engine that Start starts.
func New(cfg Config) *Engine {
	e := &Engine{
		cfg: cfg, queued: map[advisory.Key]*place{}, want: make(chan struct{}, 1), poke: make(chan struct{}, 1),
	}
	e.ctx, e.stop = context.WithCancel(context.Background())
	return e
}

// Start implements [engine.Engine].
func (e *Engine) Start(ctx context.Context, manager engine.Manager) error {
	e.manager = manager
	if err := e.open(ctx); err != nil {
		e.stop()
		return err
	}
	for _, work := range []func(){e.maintain, e.guard, e.poll} {
		e.workers.Go(work) //nolint:contextcheck // they outlive this call
	}
	return nil
}

// Pick implements [engine.Engine].
func (e *Engine) Pick(time.Time) (engine.Anchor, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.anchor == nil || e.anchor.link == nil {
		chans.Signal(e.want)
		return nil, nil //nolint:nilnil // there is none at the moment
	}
	return e.anchor, nil
}

// Capacity implements [engine.Engine].
func (e *Engine) Capacity() int {
	if e.cfg.Capacity != nil {
		return e.cfg.Capacity()
	}
	return capacity
}

// Client implements [engine.Identified].
func (e *Engine) Client() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.anchor == nil || e.anchor.link == nil || !e.anchor.link.counts() {
		return 0
	}
	return e.anchor.link.holder
}

// link returns the present link; nil if there is none.
func (e *Engine) link() *link {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.anchor == nil {
		return nil
	}
	return e.anchor.link
}

// Listen has the server notify the session of what operators ask for.
func (e *Engine) Listen() {
	if l := e.link(); l != nil {
		e.listen(l)
	}
}

// Closing implements [engine.Engine].
func (e *Engine) Closing() <-chan struct{} { return e.ctx.Done() }

// Close implements [engine.Engine].
func (e *Engine) Close(ctx context.Context) error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.workers.Wait()
	e.mu.Lock()
	a := e.anchor
	e.mu.Unlock()
	var err error
	if a != nil {
		err = a.close(ctx)
	}
	e.pipes.Wait()
	return err
}

// open opens a connection, and makes it the link of the anchor, or of another one if there is none.
func (e *Engine) open(ctx context.Context) error {
	if !e.cfg.Budget.Take(session.Holding) {
		return errNoPlace
	}
	l := &link{engine: e, holder: e.newHolder()}
	var commands []session.Command
	if !e.cfg.Pooled {
		commands = append(commands, session.Command{
			What: "become a holder of leases", SQL: "SELECT pgbaton.enlist($1, $2)", Params: enlistment(l.holder, e.cfg.Name),
		})
	}
	s, err := e.cfg.Dial(ctx, commands...)
	if err != nil {
		e.cfg.Budget.Give(session.Holding)
		return err
	}
	if err := l.start(ctx, s); err != nil {
		e.cfg.Budget.Give(session.Holding)
		return err
	}
	e.attach(l)
	return nil
}

var errNoPlace = fmt.Errorf("all connections of Config.MaxConns are in use")

// maxHolder bounds the ids of holders. Any bigint would do.
const maxHolder = 1 << 62

// newHolder returns the id of a holder: below zero for one without a session.
func (e *Engine) newHolder() int64 {
	id := 1 + rand.Int64N(maxHolder) //nolint:gosec // only has to be unlike others
	if e.cfg.Pooled {
		return -id
	}
	return id
}

// attach makes a link that of the anchor.
func (e *Engine) attach(l *link) {
	e.mu.Lock()
	a := e.anchor
	if a == nil {
		a = newAnchor(e)
		e.anchor = a
	}
	l.anchor = a
	dead := l.dead
	if !dead {
		a.link = l
		if !e.cfg.Pooled {
			a.tied.Store(l)
		}
	}
	pending := a.pending
	a.pending = nil
	again := e.cfg.Pooled && (len(a.leases)+len(a.former)+len(e.orphans) > 0)
	waits := len(e.queued) > 0
	e.mu.Unlock()
	if dead {
		chans.Signal(e.want)
		return
	}
	if again {
		l.submit(op{renewal: &renewal{only: true}})
	}
	if len(pending) > 0 {
		a.Submit(pending...)
	}
	l.pipe.Attend()
	if waits {
		e.listen(l)
	}
	e.manager.Ready()
}

// renewals is how often in a TTL all leases are renewed.
const renewals = 3

// maintain opens connections when they are wanted, with jittered pauses between failures, and has leases renewed.
func (e *Engine) maintain() {
	var redial backoff.Reconnect
	renew := time.NewTicker(e.cfg.TTL / renewals)
	defer renew.Stop()
	tend := time.NewTicker(backoff.About(time.Minute))
	defer tend.Stop()
	for {
		var retry <-chan time.Time
		if e.short() {
			switch err := e.open(e.ctx); {
			case err == nil:
				redial.Connected()
				e.cfg.Report("a connection for locks was opened", nil)
				continue
			case e.ctx.Err() != nil:
				return
			default:
				e.cfg.Report("no connection for locks can be opened; it is tried again", err)
				e.manager.Down(err)
				retry = time.After(redial.Pause())
			}
		}
		wanted := e.want
		if retry != nil {
			wanted = nil // during a pause wishes wait
		}
		select {
		case <-e.ctx.Done():
			return
		case <-retry:
		case <-wanted:
		case <-renew.C:
			e.renew()
		case <-tend.C:
			e.tend()
		}
	}
}

// guard ends the anchor when it can no longer be trusted, whatever the goroutine that maintains waits for. The trust that a grant
// brings ends no sooner than a look after the next one.
func (e *Engine) guard() {
	const looks = 16 // in a TTL
	for {
		e.mu.Lock()
		a := e.anchor
		e.mu.Unlock()
		left := e.cfg.TTL / looks
		if a != nil {
			left = min(left, max(a.trustLeft(time.Now()), time.Millisecond))
		}
		select {
		case <-e.ctx.Done():
			return
		case <-time.After(left):
		}
		if a != nil && !a.Trusted(time.Now()) {
			_ = a.Expire()
		}
	}
}

// short reports whether there is no connection.
func (e *Engine) short() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.closed && (e.anchor == nil || e.anchor.link == nil)
}

// renew has the leases renewed. A client behind a pooler that holds nothing shows all the same that it is there.
func (e *Engine) renew() {
	e.mu.Lock()
	var l *link
	if a := e.anchor; a != nil && a.link != nil && (len(a.leases) > 0 || (e.cfg.Pooled && a.link.joined.Load() != 0)) {
		l = a.link
	}
	e.mu.Unlock()
	if l != nil {
		l.submit(op{renewal: &renewal{}})
		l.pipe.Attend()
	}
}

// tend has the server tidied up.
func (e *Engine) tend() {
	if l := e.link(); l != nil {
		l.pipe.Ask(&stmtTend, ignored{}, nil)
		l.pipe.Attend()
	}
}

// expired is why leases are lost that were not renewed in time.
func (e *Engine) expired() error {
	return &lockerr.LossError{Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("no renewal was answered for %v (TTL %v); this process, "+
		"the network or the server stalled", span(e.cfg.TTL), e.cfg.TTL)}
}
