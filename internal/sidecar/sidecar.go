package sidecar

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Config is what a sidecar needs.
type Config struct {
	TTL    time.Duration
	Name   string // of the client, for people
	Pooled bool   // a pooler may be in between
	Mute   bool   // the server has no notifications
	// Dial opens a session and runs the commands on it. It returns ErrNoConnection, ErrBusy, or what is wrong with the server.
	Dial   func(ctx context.Context, commands ...session.Command) (*session.Session, error)
	Hung   func()                        // a connection of Dial's was closed
	Tend   time.Duration                 // how often what others left behind is tidied up; each minute if it is zero
	Report func(event string, err error) // for the log
	Idle   time.Duration                 // a session without use is closed after so long; 0 for 10 s
}

const defaultIdle = 10 * time.Second

// Observer hears of the sidecar's sessions, on goroutines that must not be kept waiting.
type Observer interface {
	Opened(s *Session)
	Failed(err error)             // there is no session, and one could not be opened
	Lost(s *Session, cause error) // before the operations under way are answered
}

// Sidecar is the keeper of the session.
type Sidecar struct {
	cfg Config

	mu        sync.Mutex
	session   *Session      // nil if there is none
	changed   chan struct{} // closed when session or failure change
	failure   error         // of the last attempt to open a session, while there is none
	observers []Observer
	listeners []*listener
	busy      []func() bool // of users that need the session though they send nothing
	started   bool
	unused    bool // the session was closed for want of use; the next one is opened when somebody asks
	closed    bool
	pooledID  int64 // of the holder behind a pooler, which outlives connections

	used   atomic.Int64  // when the session was used last, in Unix nanoseconds
	asking atomic.Int32  // queries under way, or waiting for a session
	lane   chan struct{} // has a value while a statement that was undone runs again

	want    chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutine that opens sessions
	stop    context.CancelFunc
	workers sync.WaitGroup
	pipes   sync.WaitGroup // the goroutines of pipelines
}

type listener struct {
	prefix string
	hear   func(payload string)
}

// New makes a sidecar without a session.
func New(cfg Config) *Sidecar {
	ctx, stop := context.WithCancel(context.Background())
	cfg.Tend = cmp.Or(cfg.Tend, time.Minute)
	return &Sidecar{
		cfg: cfg, changed: make(chan struct{}), want: make(chan struct{}, 1), ctx: ctx, stop: stop,
		lane:     make(chan struct{}, 1),
		pooledID: -1 - rand.Int64N(maxID), //nolint:gosec // only has to be unlike others
	}
}

// maxID bounds the ids of holders. Any bigint would do.
const maxID = 1 << 62

// Observe adds an observer. If there is a session it is told at once.
func (c *Sidecar) Observe(o Observer) {
	c.mu.Lock()
	c.observers = append(c.observers, o)
	s := c.session
	c.mu.Unlock()
	if s != nil {
		o.Opened(s)
	}
}

// Subscribe calls hear, on a goroutine that must not be kept waiting, for each notification that begins with the
// prefix, as long as there is a session, until cancel is called.
func (c *Sidecar) Subscribe(prefix string, hear func(payload string)) (cancel func()) {
	entry := &listener{prefix, hear}
	c.mu.Lock()
	c.listeners = append(c.listeners, entry)
	c.mu.Unlock()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.listeners = slices.DeleteFunc(slices.Clone(c.listeners), func(other *listener) bool { return other == entry })
	}
}

// Current returns the session, or nil if there is none; then one is being opened, and observers will be told.
func (c *Sidecar) Current() *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.use() // a caller that asks for it keeps it from being closed for want of use
	if c.session == nil {
		c.open()
	}
	return c.session
}

// Known is the id of the holder that the present session is; 0 if there is none.
func (c *Sidecar) Known() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return 0
	}
	return c.session.Holder
}

// open asks for a session. The caller holds mu.
func (c *Sidecar) open() {
	c.unused = false
	c.use()
	if !c.started && !c.closed {
		c.started = true
		c.workers.Add(1)
		go c.maintain()
	}
	chans.Signal(c.want)
}

// wait returns the session once there is one, but not the one that was lost. It fails when ctx ends, or no session will do.
func (c *Sidecar) wait(ctx context.Context, lost *Session) (*Session, error) {
	for first := true; ; first = false {
		c.mu.Lock()
		s, failure, closed, changed := c.session, c.failure, c.closed, c.changed
		if s == nil && !closed && (first || failure == nil) {
			c.open()
		}
		c.mu.Unlock()
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
			return nil, c.ended(ctx)
		}
	}
}

// forGood reports whether a session that could not be opened is not worth another try: somebody has to do something first.
func forGood(failure error) bool {
	for _, kind := range []error{ErrNoConnection, lockerr.Schema, lockerr.Pooler, lockerr.UnsupportedServer} {
		if errors.Is(failure, kind) {
			return true
		}
	}
	return false
}

// ended is the error of a call that ctx ended: with its cause, and with what is wrong with the connection.
func (c *Sidecar) ended(ctx context.Context) error {
	c.mu.Lock()
	failure := c.failure
	c.mu.Unlock()
	return lockerr.Ended(ctx, lockerr.NoConnection(failure))
}

// Holder is the id of the holder that the present session is.
func (c *Sidecar) Holder(ctx context.Context) (int64, error) {
	s, err := c.wait(ctx, nil)
	if err != nil {
		return 0, err
	}
	return s.Holder, nil
}

// maintain opens sessions when they are wanted, with jittered pauses between failures. Once there was one, the next
// is opened as soon as it is lost.
func (c *Sidecar) maintain() {
	defer c.workers.Done()
	var redial backoff.Reconnect
	idle := time.NewTicker(c.idle() / 2)
	defer idle.Stop()
	tend := time.NewTicker(backoff.About(c.cfg.Tend))
	defer tend.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tend.C:
			c.tend()
			continue
		case <-c.want:
		case <-idle.C:
			c.closeIfIdle()
			continue
		}
		if !c.short() {
			continue
		}
		s, err := c.dial()
		switch {
		case err == nil:
			redial.Connected()
			c.present(s)
		case c.ctx.Err() != nil:
			return
		case errors.Is(err, ErrNoConnection):
			c.fail(err) // it is tried again when somebody asks again
		case errors.Is(err, ErrBusy):
			c.pause(backoff.Soon())
		default:
			c.cfg.Report("no connection for semaphores, leaders and Once can be opened; it is tried again", err)
			c.fail(err)
			c.pause(redial.Pause())
		}
	}
}

// pause waits for so long, before a session is wanted again.
func (c *Sidecar) pause(length time.Duration) {
	select {
	case <-c.ctx.Done():
	case <-time.After(length):
	}
	chans.Signal(c.want)
}

func (c *Sidecar) short() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session == nil && !c.unused
}

// present makes a session the present one, unless it has died already.
func (c *Sidecar) present(s *Session) {
	c.mu.Lock()
	if s.cause != nil {
		c.mu.Unlock()
		chans.Signal(c.want)
		return
	}
	c.session, c.failure = s, nil
	c.wakeWaiters()
	observers := c.observers
	c.mu.Unlock()
	for _, o := range observers {
		o.Opened(s)
	}
}

// fail reports that there is no session.
func (c *Sidecar) fail(err error) {
	c.mu.Lock()
	c.failure = err
	c.wakeWaiters()
	observers := c.observers
	c.mu.Unlock()
	for _, o := range observers {
		o.Failed(err)
	}
}

// wakeWaiters wakes the callers that wait for a session. The caller holds mu.
func (c *Sidecar) wakeWaiters() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// notified hands a notification to the listeners for its prefix.
func (c *Sidecar) notified(payload string) {
	c.mu.Lock()
	listeners := c.listeners
	c.mu.Unlock()
	for _, entry := range listeners {
		if strings.HasPrefix(payload, entry.prefix) {
			entry.hear(payload)
		}
	}
}

// Close ends the session and waits for the sidecar's goroutines.
func (c *Sidecar) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.wakeWaiters()
	c.mu.Unlock()
	c.stop()
	c.workers.Wait()
	c.mu.Lock()
	s := c.session // one that was being opened is there by now
	c.mu.Unlock()
	var err error
	if s != nil {
		c.retire(ctx, s)
		err = s.close(ctx)
	}
	c.pipes.Wait()
	return err
}

var (
	// ErrNoConnection means that the client may open no more connections.
	ErrNoConnection = errors.New("no connection is left of Config.MaxConns")
	// ErrBusy means that it may as soon as another one is closed, which has been asked to be.
	ErrBusy = errors.New("all connections of Config.MaxConns are in use at the moment")
)
