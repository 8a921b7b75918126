package desk

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/link"
)

// world is a desk with a pretended server and room. Nothing is answered until the test says so. It is for use
// in a synctest bubble, where settle waits until every goroutine has got as far as it can.
type world struct {
	*Desk
	t *testing.T

	mu      sync.Mutex
	server  *server
	links   []*fakeLink // open
	all     []*fakeLink
	dialErr error
	hung    int
	stands  map[advisory.Key]bool // in the room
}

func newWorld(t *testing.T, adjust ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, server: newServer(), stands: map[advisory.Key]bool{}}
	cfg := Config{
		MaxHeld: 1000, TTL: 10 * time.Second, PerLink: 100, MaxLinks: 1, Room: w,
		Dial:   w.dial,
		Hung:   func() { w.hung++ },
		Report: func(string, error) { require.True(t, w.Desk == nil || w.Desk.mu.TryLock()); w.unlockDesk() },
	}
	for _, f := range adjust {
		f(&cfg)
	}
	var err error
	w.Desk, err = New(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, w.Close(context.Background())) // so that the bubble can end after a failure, too
		require.Equal(t, len(w.all), w.hung, "places in the budget given back")
	})
	return w
}

// unlockDesk undoes the TryLock that shows that nothing is reported under the mutex.
func (w *world) unlockDesk() {
	if w.Desk != nil {
		w.Desk.mu.Unlock()
	}
}

func (w *world) dial(_ context.Context, handler link.Handler) (Link, int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dialErr != nil {
		return nil, 0, w.dialErr
	}
	l := &fakeLink{world: w, handler: handler, session: w.server.newSession()}
	w.links, w.all = append(w.links, l), append(w.all, l)
	return l, w.server.tableSize, nil
}

// Enter implements [Room].
func (w *world) Enter(key advisory.Key) {
	require.False(w.t, w.stands[key], "entered twice")
	w.stands[key] = true
}

// Leave implements [Room].
func (w *world) Leave(key advisory.Key) {
	require.True(w.t, w.stands[key], "left without being there")
	delete(w.stands, key)
}

func (w *world) link() *fakeLink {
	w.mu.Lock()
	defer w.mu.Unlock()
	require.NotEmpty(w.t, w.links)
	return w.links[0]
}

// round answers what was submitted up to now, in one round trip.
func (w *world) round() {
	w.link().complete(w.link().take())
	synctest.Wait()
}

// rounds answers everything, also what answers lead to.
func (w *world) rounds() {
	synctest.Wait()
	for again := true; again; {
		again = false
		for _, l := range w.links {
			if ops := l.take(); len(ops) > 0 {
				l.complete(ops)
				again = true
			}
		}
		synctest.Wait()
	}
}

// empty closes the desk after it has shown that nothing is left.
func (w *world) empty() {
	w.rounds()
	require.Empty(w.t, w.entries)
	require.Zero(w.t, w.claims)
	require.Empty(w.t, w.stands)
	for _, l := range w.links {
		require.Zero(w.t, w.server.heldBy(l.session))
	}
	require.NoError(w.t, w.Close(context.Background()))
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
		c.hold, c.err = w.Acquire(ctx, key, mode, try)
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

// fakeLink is a [Link] whose answers the test releases.
type fakeLink struct {
	world   *world
	handler link.Handler
	session int

	mu      sync.Mutex
	queue   []*link.Op
	expired bool
	cause   error
	unread  error // why it will fail as soon as somebody looks

	onTrusted func() // of the next look at the trust
}

func (l *fakeLink) Submit(ops ...*link.Op) {
	l.mu.Lock()
	cause := l.cause
	if cause == nil {
		l.queue = append(l.queue, ops...)
	}
	l.mu.Unlock()
	if cause != nil {
		l.handler.Lost(ops, cause)
	}
}

func (l *fakeLink) Help(context.Context, func() bool) {}
func (l *fakeLink) Attend()                           {}
func (l *fakeLink) Expired() error                    { return errExpired }

// CatchUp finds what the test has left unread.
func (l *fakeLink) CatchUp(context.Context) {
	l.mu.Lock()
	unread := l.unread
	l.mu.Unlock()
	if unread != nil {
		l.Fail(unread)
	}
}

// leave has the news of an end lie unread at the link.
func (l *fakeLink) leave(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unread = cause
}

var errExpired, errCut = errors.New("lease expired"), errors.New("cut")

func (l *fakeLink) Trusted(time.Time) bool {
	if hook := l.onTrusted; hook != nil {
		l.onTrusted = nil
		hook()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.expired
}

func (l *fakeLink) setExpired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expired = true
}

// take takes what was submitted, as a round trip under way.
func (l *fakeLink) take() []*link.Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	ops := l.queue
	l.queue = nil
	return ops
}

// complete carries operations out and answers them.
func (l *fakeLink) complete(ops []*link.Op) {
	draws := l.world.server.run(l.world.t, l.session, ops)
	l.handler.Complete(ops, draws)
}

func (l *fakeLink) Fail(cause error) {
	l.mu.Lock()
	if l.cause != nil {
		l.mu.Unlock()
		return
	}
	l.cause = cause
	ops := l.queue
	l.queue = nil
	l.mu.Unlock()
	l.handler.Lost(ops, cause) // before the server frees the locks
	w := l.world
	w.mu.Lock()
	w.server.drop(l.session)
	for i, other := range w.links {
		if other == l {
			w.links = append(w.links[:i:i], w.links[i+1:]...)
		}
	}
	w.mu.Unlock()
	l.handler.Closed()
}

func (l *fakeLink) Jeopardy() <-chan struct{} { return nil }

// Close frees what is held, and may learn of the end of the connection before anything else.
func (l *fakeLink) Close(context.Context) error {
	l.Fail(errCut)
	return nil
}
