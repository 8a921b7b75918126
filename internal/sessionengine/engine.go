package sessionengine

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockqueue"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Config is what the engine needs.
type Config struct {
	Name       string        // of the client, for people
	TTL        time.Duration // also how often to look at the lock table, at the most
	PerAnchor  int           // keys of an anchor from which another one is wanted: a session's every statement slows down with its locks
	MaxAnchors int
	Budget     *session.Budget
	// Dial opens a session that will hold keys, Wait one that will wait. The budget has a place for it.
	Dial   func(context.Context) (*session.Session, error)
	Wait   func(context.Context) (*session.Session, error)
	Report func(event string, err error) // for the log
	// Notified is told of notifications, after Listen, and with "" when a session begins to hear them; it must not wait. Nil if nobody listens.
	Notified func(payload string)
}

// Engine is the session engine.
type Engine struct {
	cfg     Config
	manager engine.Manager
	queue   *lockqueue.Queue

	anchors atomic.Pointer[[]*anchor] // the ones that can be picked; replaced with mu
	table   lockTable

	mu     sync.Mutex
	closed bool

	want    chan struct{} // another anchor is wanted
	look    chan struct{} // a look at the lock table is due
	stop    context.CancelFunc
	workers sync.WaitGroup
	pipes   sync.WaitGroup // the goroutines of pipelines
}

var (
	_ engine.Engine     = (*Engine)(nil)
	_ engine.Gatherer   = (*Engine)(nil)
	_ engine.Identified = (*Engine)(nil)
)

// New returns an engine that Start starts.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, want: make(chan struct{}, 1), look: make(chan struct{}, 1)}
	e.table.lookEvery = cfg.TTL
	e.anchors.Store(&[]*anchor{})
	e.queue = lockqueue.New(lockqueue.Config{
		TTL: cfg.TTL, Budget: cfg.Budget, Dial: cfg.Wait, Report: cfg.Report, Waiting: waiting{e},
	})
	return e
}

// Start implements [engine.Engine].
func (e *Engine) Start(ctx context.Context, manager engine.Manager) error {
	e.manager = manager
	if err := e.open(ctx); err != nil {
		e.queue.Close()
		return err
	}
	running, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.workers.Add(1)
	go e.maintain(running) //nolint:contextcheck // it outlives this call
	return nil
}

// Pick implements [engine.Engine]: the anchor with the fewest keys. When all are well filled it asks for another one.
func (e *Engine) Pick(now time.Time) (engine.Anchor, error) {
	anchors := *e.anchors.Load()
	var best *anchor
	held := 0
	for _, a := range anchors {
		n := int(a.held.Load())
		held += n
		if best == nil || n < int(best.held.Load()) {
			best = a
		}
	}
	if best == nil || (int(best.held.Load()) >= e.cfg.PerAnchor && len(anchors) < e.cfg.MaxAnchors) {
		chans.Signal(e.want)
	}
	if best == nil {
		return nil, nil //nolint:nilnil // there is none at the moment
	}
	look, err := e.table.pressure(held, now)
	if look {
		chans.Signal(e.look)
	}
	if err != nil {
		return nil, err
	}
	best.held.Add(1)
	return best, nil
}

// Capacity implements [engine.Engine].
func (e *Engine) Capacity() int {
	const share = 8
	return int(e.table.size.Load()) / share
}

// MostLocks returns how many locks fit into the server's lock table before new ones are refused, if nobody else holds any.
func (e *Engine) MostLocks() int { return int(e.table.size.Load()) * fullest / percentage }

// Queue implements [engine.Engine].
func (e *Engine) Queue(key advisory.Key) { e.queue.Enter(key) }

// Unqueue implements [engine.Engine].
func (e *Engine) Unqueue(key advisory.Key) { e.queue.Leave(key) }

// Gather implements [engine.Gatherer].
func (e *Engine) Gather(keys []advisory.Key) engine.Gathering { return e.queue.Gather(keys) }

// AtGate waits at a gate alone; see [lockqueue.Queue.AtGate].
func (e *Engine) AtGate(gate advisory.Key) *lockqueue.Wait { return e.queue.AtGate(gate) }

// GiveWay asks a session that waits to leave, since the budget has no place for another one.
func (e *Engine) GiveWay() { e.queue.GiveWay() }

// Client implements [engine.Identified]: by the first session that the server knows.
func (e *Engine) Client() int64 {
	for _, a := range *e.anchors.Load() {
		if id := a.Client(); id != 0 {
			return id
		}
	}
	return 0
}

// Listen has the server notify the sessions that hold locks of what operators ask for. A round trip that fails takes LISTEN with it; then the
// next call asks again.
func (e *Engine) Listen() {
	for _, a := range *e.anchors.Load() {
		if !a.listening.Swap(true) {
			a.Ask(&stmtListen, ignored{}, func(err error) {
				a.listening.Store(err == nil)
				if err == nil && e.cfg.Notified != nil {
					e.cfg.Notified("")
				}
			})
			a.Attend()
		}
	}
}

// Closing implements [engine.Engine].
func (e *Engine) Closing() <-chan struct{} { return e.queue.Done() }

// Close implements [engine.Engine].
func (e *Engine) Close(ctx context.Context) error {
	e.queue.Close()
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	e.workers.Wait()
	var err error
	for _, a := range *e.anchors.Load() {
		err = errors.Join(err, a.close(ctx))
	}
	e.pipes.Wait()
	return err
}

// waiting is the lock manager as the lock queue sees it: a turn without an anchor is of no use.
type waiting struct{ e *Engine }

// Need implements [engine.Waiting].
func (w waiting) Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool) {
	if len(*w.e.anchors.Load()) == 0 {
		return 0, time.Time{}, false
	}
	return w.e.manager.Need(key)
}

// Turn implements [engine.Waiting].
func (w waiting) Turn(key advisory.Key) <-chan bool { return w.e.manager.Turn(key) }

// Sweep implements [engine.Waiting].
func (w waiting) Sweep(keys []advisory.Key) { w.e.manager.Sweep(keys) }

// add makes an anchor one that can be picked, unless it was lost already.
func (e *Engine) add(a *anchor) {
	e.mu.Lock()
	lost := a.lost
	if !lost {
		anchors := append(slices.Clone(*e.anchors.Load()), a)
		e.anchors.Store(&anchors)
	}
	e.mu.Unlock()
	if !lost {
		e.manager.Ready()
	}
}

// remove takes a lost anchor out of the ones that can be picked, and reports whether to report that: it is the first time, and
// not because the engine is being closed.
func (e *Engine) remove(a *anchor) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	a.lost = true
	before := *e.anchors.Load()
	anchors := slices.DeleteFunc(slices.Clone(before), func(other *anchor) bool { return other == a })
	e.anchors.Store(&anchors)
	return len(anchors) < len(before) && !e.closed
}

var errNoPlace = errors.New("all connections are in use")

// open opens an anchor.
func (e *Engine) open(ctx context.Context) error {
	if !e.cfg.Budget.Take(session.Holding) {
		if e.cfg.Budget.Crowded() {
			e.queue.GiveWay()
		}
		return errNoPlace
	}
	a, err := e.dial(ctx)
	if err != nil {
		e.cfg.Budget.Give(session.Holding)
		return err
	}
	e.add(a)
	return nil
}

// short reports whether another anchor is wanted.
func (e *Engine) short() bool {
	anchors := *e.anchors.Load()
	for _, a := range anchors {
		if int(a.held.Load()) < e.cfg.PerAnchor {
			return false
		}
	}
	return len(anchors) < e.cfg.MaxAnchors
}

// maintain opens anchors when they are wanted, with jittered pauses between failures.
func (e *Engine) maintain(ctx context.Context) {
	defer e.workers.Done()
	var redial backoff.Reconnect
	for {
		wanted, retry := e.want, (<-chan time.Time)(nil)
		if e.short() {
			switch err := e.open(ctx); {
			case err == nil:
				redial.Connected()
				e.cfg.Report("a connection for locks was opened", nil)
				continue
			case ctx.Err() != nil:
				return
			default:
				e.failed(err)
				wanted = nil // during a pause wishes wait
				retry = time.After(redial.Pause())
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-wanted:
		case <-e.look:
			if anchors := *e.anchors.Load(); len(anchors) > 0 {
				anchors[0].Ask(&stmtLook, (*look)(&e.table), nil)
				anchors[0].Attend()
			}
		}
	}
}

// failed reports that an anchor could not be opened.
func (e *Engine) failed(err error) {
	e.cfg.Report("no connection for locks can be opened; it is tried again", err)
	if len(*e.anchors.Load()) == 0 {
		e.manager.Down(err)
	}
}
