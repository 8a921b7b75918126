package lockmgr

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// world is a manager with a pretended engine and server. Nothing is answered until the test says so. It is for use
// in a synctest bubble, where settle waits until every goroutine has got as far as it can.
type world struct {
	*Manager
	t *testing.T

	maxAnchors, perAnchor int
	capacity              int

	mu      sync.Mutex
	server  *server
	anchors []*fakeAnchor // open
	all     []*fakeAnchor
	dialErr error
	pickErr error
	queued  map[advisory.Key]bool

	want    chan struct{} // an anchor is wanted
	closing chan struct{}
	workers sync.WaitGroup
}

var _ engine.Engine = (*world)(nil)

func newWorld(t *testing.T, adjust ...func(*world, *Config)) *world {
	t.Helper()
	w := &world{
		t: t, maxAnchors: 1, perAnchor: 100, capacity: 1000, server: newServer(), queued: map[advisory.Key]bool{},
		want: make(chan struct{}, 1), closing: make(chan struct{}),
	}
	cfg := Config{MaxHeld: 1000, Engine: w, Report: func(event string, err error) { assert.NoError(t, err, event) }}
	for _, f := range adjust {
		f(w, &cfg)
	}
	var err error
	w.Manager, err = New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Manager.Close(context.Background())) }) // so that the bubble can end after a failure, too
	return w
}

// Start implements [engine.Engine].
func (w *world) Start(_ context.Context, manager engine.Manager) error {
	w.Manager = manager.(*Manager) //nolint:forcetypeassert // of this test
	if err := w.open(); err != nil {
		return err
	}
	w.workers.Go(w.maintain)
	return nil
}

func (w *world) open() error {
	w.mu.Lock()
	if w.dialErr != nil {
		defer w.mu.Unlock()
		return w.dialErr
	}
	l := &fakeAnchor{world: w, session: w.server.newSession()}
	w.anchors, w.all = append(w.anchors, l), append(w.all, l)
	w.mu.Unlock()
	w.Ready()
	return nil
}

// maintain opens anchors when they are wanted.
func (w *world) maintain() {
	for {
		select {
		case <-w.closing:
			return
		case <-w.want:
		}
		if !w.short() {
			continue
		}
		if err := w.open(); err != nil {
			w.Down(err)
			time.Sleep(100 * time.Millisecond)
		}
		chans.Signal(w.want)
	}
}

func (w *world) short() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.anchors) < w.maxAnchors && !slices.ContainsFunc(w.anchors, func(l *fakeAnchor) bool { return l.held < w.perAnchor })
}

// Pick implements [engine.Engine].
func (w *world) Pick(time.Time) (engine.Anchor, error) {
	require.False(w.t, w.Manager.mu.TryLock(), "called with the mutex")
	w.mu.Lock()
	defer w.mu.Unlock()
	chans.Signal(w.want)
	if w.pickErr != nil {
		return nil, w.pickErr
	}
	if len(w.anchors) == 0 {
		return nil, nil
	}
	l := slices.MinFunc(w.anchors, func(a, b *fakeAnchor) int { return a.held - b.held })
	l.held++
	return l, nil
}

// Capacity implements [engine.Engine].
func (w *world) Capacity() int { return w.capacity }

// Queue implements [engine.Engine].
func (w *world) Queue(key advisory.Key) {
	assert.False(w.t, w.queued[key], "queued twice") // the manager's mutex must not stay locked
	w.queued[key] = true
}

// Unqueue implements [engine.Engine].
func (w *world) Unqueue(key advisory.Key) {
	assert.True(w.t, w.queued[key], "not queued")
	delete(w.queued, key)
}

func (w *world) Gather([]advisory.Key) engine.Gathering { return nil }
func (w *world) Closing() <-chan struct{}               { return w.closing }

// Close implements [engine.Engine]. Closing may learn of the end of an anchor before anything else.
func (w *world) Close(context.Context) error {
	require.True(w.t, w.Manager.mu.TryLock(), "called without the mutex")
	w.Manager.mu.Unlock()
	if chans.Closed(w.closing) {
		return nil
	}
	close(w.closing)
	w.workers.Wait()
	for len(w.anchors) > 0 {
		w.anchors[0].Fail(errCut)
	}
	for _, l := range w.all {
		require.Zero(w.t, l.held, "keys for which it was picked")
	}
	return nil
}

func (w *world) anchor() *fakeAnchor {
	w.mu.Lock()
	defer w.mu.Unlock()
	require.NotEmpty(w.t, w.anchors)
	return w.anchors[0]
}

// round answers what was submitted up to now, in one round trip.
func (w *world) round() {
	w.anchor().complete(w.anchor().take())
	synctest.Wait()
}

// rounds answers everything, also what answers lead to.
func (w *world) rounds() {
	synctest.Wait()
	for again := true; again; {
		again = false
		for _, l := range w.anchors {
			if ops := l.take(); len(ops) > 0 {
				l.complete(ops)
				again = true
			}
		}
		synctest.Wait()
	}
}

// empty closes the manager after it has shown that nothing is left.
func (w *world) empty() {
	w.rounds()
	require.Empty(w.t, w.keys)
	require.Empty(w.t, w.queued)
	for _, l := range w.anchors {
		require.Zero(w.t, w.server.heldBy(l.session))
	}
	require.NoError(w.t, w.Manager.Close(context.Background()))
}

// call is an Acquire or a Release under way.
type call struct {
	cancel context.CancelFunc
	done   chan struct{}
	hold   *Hold
	err    error
}

func (c *call) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (w *world) acquire(key advisory.Key, mode advisory.Mode, try bool) *call {
	ctx, cancel := context.WithCancel(context.Background())
	c := &call{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.hold, c.err = w.Acquire(ctx, advisory.Named{Key: key}, mode, try)
	}()
	synctest.Wait()
	return c
}

// held is an acquire that is granted at once.
func (w *world) held(key advisory.Key, mode advisory.Mode) *Hold {
	c := w.acquire(key, mode, false)
	w.rounds()
	return w.granted(c)
}

func (w *world) granted(c *call) *Hold {
	w.t.Helper()
	require.True(w.t, c.ended(), "no answer")
	require.NoError(w.t, c.err)
	return c.hold
}

func (w *world) refused(c *call, target error) {
	w.t.Helper()
	require.True(w.t, c.ended(), "no answer")
	require.ErrorIs(w.t, c.err, target)
}

func (w *world) release(h *Hold) *call {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = h.Release()
	}()
	synctest.Wait()
	return c
}

// fakeAnchor is an [engine.Anchor] whose answers the test releases.
type fakeAnchor struct {
	world   *world
	session int
	held    int // keys for which it was picked

	mu      sync.Mutex
	queue   []*engine.Request
	expired bool
	cause   error
	unread  error // why it will fail as soon as somebody looks

	onTrusted func() // of the next look at the trust
	onHelp    func() // of the next caller that reads answers
}

func (l *fakeAnchor) Submit(requests ...*engine.Request) {
	l.mu.Lock()
	cause := l.cause
	if cause == nil {
		l.queue = append(l.queue, requests...)
	}
	l.mu.Unlock()
	if cause != nil {
		l.world.Lost(l, cause)
	}
}

func (l *fakeAnchor) Attend() {}

func (l *fakeAnchor) Help(context.Context, func() bool) {
	if hook := l.onHelp; hook != nil {
		l.onHelp = nil
		hook()
	}
}

func (l *fakeAnchor) Expire() error {
	l.Fail(errExpired)
	return errExpired
}

func (l *fakeAnchor) Drop() {
	require.False(l.world.t, l.world.Manager.mu.TryLock(), "called with the mutex")
	l.world.mu.Lock()
	defer l.world.mu.Unlock()
	l.held--
}

// CatchUp finds what the test has left unread.
func (l *fakeAnchor) CatchUp(context.Context) {
	l.mu.Lock()
	unread := l.unread
	l.mu.Unlock()
	if unread != nil {
		l.Fail(unread)
	}
}

// leave has the news of an end lie unread at the anchor.
func (l *fakeAnchor) leave(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unread = cause
}

var errExpired, errCut = errors.New("lease expired"), errors.New("cut")

func (l *fakeAnchor) Trusted(time.Time) bool {
	if hook := l.onTrusted; hook != nil {
		l.onTrusted = nil
		hook()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.expired
}

func (l *fakeAnchor) setExpired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expired = true
}

// gone reports whether the anchor's holders cannot release well any longer.
func (l *fakeAnchor) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.expired || l.cause != nil || l.unread != nil
}

// take takes what was submitted, as a round trip under way.
func (l *fakeAnchor) take() []*engine.Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	requests := l.queue
	l.queue = nil
	return requests
}

// complete carries requests out and answers them.
func (l *fakeAnchor) complete(requests []*engine.Request) {
	l.world.server.run(l.world.t, l.session, requests)
	l.world.Answer(requests)
}

func (l *fakeAnchor) Fail(cause error) {
	l.mu.Lock()
	if l.cause != nil {
		l.mu.Unlock()
		return
	}
	l.cause = cause
	l.queue = nil
	l.mu.Unlock()
	w := l.world
	w.mu.Lock()
	w.anchors = slices.DeleteFunc(slices.Clone(w.anchors), func(other *fakeAnchor) bool { return other == l })
	w.mu.Unlock()
	w.Lost(l, cause) // before the server frees the keys
	w.mu.Lock()
	w.server.drop(l.session)
	w.mu.Unlock()
	chans.Signal(w.want)
}
