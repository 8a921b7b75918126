package sessionengine

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// listener is an [engine.Manager] that notes what an engine tells.
type listener struct {
	*recorder
	ready chan struct{}
	down  chan error
	lost  chan engine.Anchor
}

func (l *listener) Ready()                                                { l.ready <- struct{}{} }
func (l *listener) Down(err error)                                        { l.down <- err }
func (l *listener) Lost(anchor engine.Anchor, _ error, _ ...advisory.Key) { l.lost <- anchor }

// started is an engine on a database of its own.
type started struct {
	*Engine
	told *listener
	fail atomic.Pointer[error] // why no session can be opened
}

func start(t *testing.T, cfg Config) *started {
	t.Helper()
	dsn := testkit.Migrated(t)
	_, through := testkit.Through(t, dsn)
	dialer := &session.Dialer{Config: through, TTL: time.Minute}
	s := &started{told: &listener{
		recorder: newRecorder(), ready: make(chan struct{}, 100), down: make(chan error, 1000), lost: make(chan engine.Anchor, 100),
	}}
	cfg.TTL, cfg.Report = time.Minute, func(string, error) {}
	cfg.Wait = func(ctx context.Context) (*session.Session, error) { return dialer.Dial(ctx, session.Waiting) }
	cfg.Dial = func(ctx context.Context) (*session.Session, error) {
		if err := s.fail.Load(); err != nil {
			return nil, *err
		}
		return dialer.Dial(ctx, session.Holding)
	}
	s.Engine = New(cfg)
	require.NoError(t, s.Start(t.Context(), s.told))
	<-s.told.ready
	t.Cleanup(func() { require.NoError(t, s.Close(context.Background())) })
	return s
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(time.Minute):
		require.Fail(t, "nothing came")
		panic("unreachable")
	}
}

// When each anchor has enough keys another one is opened, and from then on the one with the fewest is picked.
func TestEngine_FillsAnchorsEvenly(t *testing.T) {
	t.Parallel()
	e := start(t, Config{PerAnchor: 3, MaxAnchors: 2, Budget: session.NewBudget(3)})
	pick := func() engine.Anchor {
		a, err := e.Pick(time.Now())
		require.NoError(t, err)
		return a
	}
	first := pick()
	for range 3 {
		require.Same(t, first, pick())
	}
	receive(t, e.told.ready)
	second := pick()
	require.NotSame(t, first, second)
	for range 3 {
		require.Same(t, second, pick())
	}
	counts := map[engine.Anchor]int{}
	for range 10 {
		counts[pick()]++
	}
	require.Equal(t, [2]int{5, 5}, [2]int{counts[first], counts[second]})
	for range 2 {
		first.Drop()
	}
	require.Same(t, first, pick())
	require.Same(t, first, pick())
	require.Len(t, *e.anchors.Load(), 2, "no more than allowed")
}

// While no session can be opened there is no anchor, and the manager is told why; it is told when there is one again.
func TestEngine_Reopens(t *testing.T) {
	t.Parallel()
	e := start(t, Config{PerAnchor: 3, MaxAnchors: 2, Budget: session.NewBudget(3)})
	refused := errors.New("connection refused")
	e.fail.Store(&refused)
	a, err := e.Pick(time.Now())
	require.NoError(t, err)
	cause := a.Expire()
	require.ErrorContains(t, cause, "lease expired")
	require.Same(t, a, receive(t, e.told.lost))
	none, err := e.Pick(time.Now())
	require.NoError(t, err)
	require.Nil(t, none)
	require.ErrorIs(t, receive(t, e.told.down), refused)
	_, _, needed := waiting{e.Engine}.Need(advisory.Key{ID: 1})
	require.False(t, needed, "nobody could use a turn")
	e.fail.Store(nil)
	receive(t, e.told.ready)
	again, err := e.Pick(time.Now())
	require.NoError(t, err)
	require.NotSame(t, a, again)
	require.True(t, again.Trusted(time.Now()))
	a.Submit(&engine.Request{Verb: engine.Acquire})
	require.Same(t, a, receive(t, e.told.lost), "it comes again for what is asked of a lost anchor")
	require.True(t, e.cfg.Budget.Take(session.Holding), "the lost one's place is free")
	e.cfg.Budget.Give(session.Holding)
}

// On failure nothing is left open.
func TestEngine_StartFails(t *testing.T) {
	t.Parallel()
	refused, budget := errors.New("connection refused"), session.NewBudget(2)
	e := New(Config{
		TTL: time.Minute, PerAnchor: 1, MaxAnchors: 1, Budget: budget, Report: func(string, error) {},
		Dial: func(context.Context) (*session.Session, error) { return nil, refused },
	})
	require.ErrorIs(t, e.Start(t.Context(), newRecorder()), refused)
	require.True(t, budget.Take(session.Holding))
	<-e.Closing()
}
