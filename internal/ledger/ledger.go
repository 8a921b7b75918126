package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Config is what a ledger needs.
type Config struct {
	TTL    time.Duration
	Name   string // of the client, for people
	Pooled bool   // a pooler may stand in between
	// Dial opens a session and runs the commands on it. It returns ErrNoRoom, ErrBusy, or what is wrong with the server.
	Dial   func(ctx context.Context, commands ...session.Command) (*session.Session, error)
	Hung   func()                        // a connection of Dial's was closed
	Tend   time.Duration                 // how often what others left behind is tidied up; each minute if it is zero
	Report func(event string, err error) // for the log
	Idle   time.Duration                 // a session without use is closed after so long; 0 for 10 s
}

const defaultIdle = 10 * time.Second

// Observer is told about the ledger's sessions, by goroutines that must not be kept waiting.
type Observer interface {
	Opened(s *Session)
	Failed(err error)             // there is no session, and one could not be opened
	Lost(s *Session, cause error) // before the operations under way are answered
}

// Ledger is the keeper of the session.
type Ledger struct {
	cfg Config

	mu        sync.Mutex
	session   *Session      // nil if there is none
	changed   chan struct{} // closed when session or failure change
	failure   error         // of the last attempt to open a session, while there is none
	gone      []*link.Link  // lost, their goroutines not yet waited for
	observers []Observer
	listeners []*listener
	busy      []func() bool // of those who need the session though they say nothing
	started   bool
	resting   bool // the session was closed for want of use; the next one is opened when somebody asks
	closed    bool
	pooledID  int64 // of the holder behind a pooler, which outlives connections

	used   atomic.Int64  // when the session was used last, in Unix nanoseconds
	asking atomic.Int32  // queries under way, or waiting for a session
	lane   chan struct{} // has a value while a statement that was undone runs again

	want    chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutine that opens sessions
	stop    context.CancelFunc
	workers sync.WaitGroup
}

type listener struct {
	prefix string
	tell   func(payload string)
}

// New makes a ledger without a session.
func New(cfg Config) *Ledger {
	ctx, stop := context.WithCancel(context.Background())
	cfg.Tend = cmp.Or(cfg.Tend, time.Minute)
	return &Ledger{
		cfg: cfg, changed: make(chan struct{}), want: make(chan struct{}, 1), ctx: ctx, stop: stop,
		lane:     make(chan struct{}, 1),
		pooledID: -1 - rand.Int64N(maxID), //nolint:gosec // only has to be unlike others
	}
}

// maxID bounds the ids of holders. Any bigint would do.
const maxID = 1 << 62

// Observe adds an observer. If there is a session it is told at once.
func (l *Ledger) Observe(o Observer) {
	l.mu.Lock()
	l.observers = append(l.observers, o)
	s := l.session
	l.mu.Unlock()
	if s != nil {
		o.Opened(s)
	}
}

// Subscribe calls tell, on a goroutine that must not be kept waiting, for each notification that begins with the
// prefix, as long as there is a session, until cancel is called.
func (l *Ledger) Subscribe(prefix string, tell func(payload string)) (cancel func()) {
	entry := &listener{prefix, tell}
	l.mu.Lock()
	l.listeners = append(l.listeners, entry)
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.listeners = slices.DeleteFunc(slices.Clone(l.listeners), func(other *listener) bool { return other == entry })
	}
}

// Current returns the session, or nil if there is none; then one is being opened, and observers will be told.
func (l *Ledger) Current() *Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.use() // whoever asks for it keeps it from being closed for want of use
	if l.session == nil {
		l.open()
	}
	return l.session
}

// open asks for a session. The caller holds mu.
func (l *Ledger) open() {
	l.resting = false
	l.use()
	if !l.started && !l.closed {
		l.started = true
		l.workers.Add(1)
		go l.maintain()
	}
	chans.Signal(l.want)
}

// wait returns the session once there is one, but not the one that was lost. It fails when ctx ends, or no session will do.
func (l *Ledger) wait(ctx context.Context, lost *Session) (*Session, error) {
	for first := true; ; first = false {
		l.mu.Lock()
		s, failure, closed, changed := l.session, l.failure, l.closed, l.changed
		if s == nil && !closed && (first || failure == nil) {
			l.open()
		}
		l.mu.Unlock()
		switch {
		case closed:
			return nil, lockerr.Closed
		case s != nil && s != lost:
			return s, nil
		case failure != nil && !first && forGood(failure):
			return nil, failure
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, l.ended(ctx)
		}
	}
}

// forGood says whether a session that could not be opened is not worth another try: somebody has to do something first.
func forGood(failure error) bool {
	for _, kind := range []error{ErrNoRoom, lockerr.Schema, lockerr.Pooler, lockerr.UnsupportedServer} {
		if errors.Is(failure, kind) {
			return true
		}
	}
	return false
}

// ended is the error of a call that ctx ended: with its cause, and with what is wrong with the connection.
func (l *Ledger) ended(ctx context.Context) error {
	l.mu.Lock()
	failure := l.failure
	l.mu.Unlock()
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if failure != nil {
		err = fmt.Errorf("%w; there is no connection: %w", err, failure)
	}
	return err
}

// Holder is the id of the holder that the present session is.
func (l *Ledger) Holder(ctx context.Context) (int64, error) {
	s, err := l.wait(ctx, nil)
	if err != nil {
		return 0, err
	}
	return s.Holder, nil
}

// maintain opens sessions when they are wanted, with jittered pauses between failures. Once there was one, the next
// is opened as soon as it is lost.
func (l *Ledger) maintain() {
	defer l.workers.Done()
	const firstPause, longestPause = 20 * time.Millisecond, 2 * time.Second
	idle := time.NewTicker(l.idle() / 2)
	defer idle.Stop()
	tend := time.NewTicker(l.cfg.Tend/2 + rand.N(l.cfg.Tend)) //nolint:gosec // jitter, not a secret
	defer tend.Stop()
	for pause := firstPause; ; {
		select {
		case <-l.ctx.Done():
			return
		case <-tend.C:
			l.tend()
			continue
		case <-l.want:
		case <-idle.C:
			l.restIfIdle()
			continue
		}
		l.bury(l.ctx)
		if !l.short() {
			continue
		}
		s, err := l.dial()
		switch {
		case err == nil:
			pause = firstPause
			l.seat(s)
		case l.ctx.Err() != nil:
			return
		case errors.Is(err, ErrNoRoom):
			l.fail(err) // it is tried again when somebody asks again
		case errors.Is(err, ErrBusy):
			l.rest(firstPause)
		default:
			l.cfg.Report("no connection for semaphores, leaders and Once can be opened; it is tried again", err)
			l.fail(err)
			l.rest(pause)
			pause = min(2*pause, longestPause)
		}
	}
}

// rest pauses about so long, before a session is wanted again.
func (l *Ledger) rest(pause time.Duration) {
	select {
	case <-l.ctx.Done():
	case <-time.After(rand.N(pause) + pause/2): //nolint:gosec // jitter, not a secret
	}
	chans.Signal(l.want)
}

func (l *Ledger) short() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session == nil && !l.resting
}

// seat makes a session the present one, unless it has died already.
func (l *Ledger) seat(s *Session) {
	l.mu.Lock()
	if s.cause != nil {
		l.gone = append(l.gone, s.link)
		l.mu.Unlock()
		chans.Signal(l.want)
		return
	}
	l.session, l.failure = s, nil
	l.tellChange()
	observers := l.observers
	l.mu.Unlock()
	for _, o := range observers {
		o.Opened(s)
	}
}

// fail tells that there is no session.
func (l *Ledger) fail(err error) {
	l.mu.Lock()
	l.failure = err
	l.tellChange()
	observers := l.observers
	l.mu.Unlock()
	for _, o := range observers {
		o.Failed(err)
	}
}

// tellChange wakes whoever waits for a session. The caller holds mu.
func (l *Ledger) tellChange() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// notified hands a notification to those who want it.
func (l *Ledger) notified(payload string) {
	l.mu.Lock()
	listeners := l.listeners
	l.mu.Unlock()
	for _, entry := range listeners {
		if strings.HasPrefix(payload, entry.prefix) {
			entry.tell(payload)
		}
	}
}

// Close ends the session and waits for the ledger's goroutines.
func (l *Ledger) Close(ctx context.Context) error {
	l.mu.Lock()
	l.closed = true
	l.tellChange()
	l.mu.Unlock()
	l.stop()
	l.workers.Wait()
	l.mu.Lock()
	s := l.session // one that was being opened is there by now
	l.mu.Unlock()
	var err error
	if s != nil {
		l.retire(ctx, s)
		err = s.link.Close(ctx)
	}
	l.bury(ctx)
	return err
}

// bury waits for the goroutines of lost sessions, which are about to end.
func (l *Ledger) bury(ctx context.Context) {
	l.mu.Lock()
	gone := l.gone
	l.gone = nil
	l.mu.Unlock()
	for _, dead := range gone {
		_ = dead.Close(ctx) // its loss was reported
	}
}

var (
	// ErrNoRoom says that the client may open no more connections.
	ErrNoRoom = errors.New("no connection is left of Config.MaxConns")
	// ErrBusy says that it may as soon as another one is closed, which has been asked to be.
	ErrBusy = errors.New("all connections of Config.MaxConns are in use at the moment")
)
