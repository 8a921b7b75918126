package sessionengine

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const patience = testkit.Patience

// recorder is an [engine.Manager] that counts the answers.
type recorder struct {
	mu      sync.Mutex
	moved   *sync.Cond
	answers map[*engine.Request]int
	lost    []*engine.Request
	cause   error
	lostAt  time.Time
	gone    chan struct{} // closed when the anchor is lost
}

func newRecorder() *recorder {
	r := &recorder{answers: map[*engine.Request]int{}, gone: make(chan struct{})}
	r.moved = sync.NewCond(&r.mu)
	return r
}

// Answer implements [engine.Manager].
func (r *recorder) Answer(requests []*engine.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range requests {
		r.answers[request]++
	}
	r.moved.Broadcast()
}

// Lost implements [engine.Manager]. The requests are told by tap.
func (r *recorder) Lost(engine.Anchor, error, ...advisory.Key) {}

// lose takes note of the requests that were lost with an anchor.
func (r *recorder) lose(requests []*engine.Request, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range requests {
		r.answers[request]++
	}
	r.lost = append(r.lost, requests...)
	if r.cause == nil {
		r.cause, r.lostAt = cause, time.Now()
		close(r.gone)
	}
	r.moved.Broadcast()
}

// tap is an anchor that tells the recorder which requests were lost.
type tap struct {
	*anchor
	recorder *recorder
}

func (t *tap) Lost(requests []*engine.Request, cause error) {
	t.anchor.Lost(requests, cause)
	t.recorder.lose(requests, cause)
}

func (r *recorder) Ready()     {}
func (r *recorder) Down(error) {}

func (r *recorder) Need(advisory.Key) (mode advisory.Mode, until time.Time, ok bool) {
	return mode, until, false
}
func (r *recorder) Turn(advisory.Key) <-chan bool { return nil }
func (r *recorder) Sweep([]advisory.Key)          {}

func (r *recorder) answered(ops ...*engine.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		if r.answers[op] == 0 {
			return false
		}
	}
	return true
}

// wait waits until every operation was answered, and requires that it was once.
func (r *recorder) wait(t *testing.T, ops ...*engine.Request) {
	t.Helper()
	timer := time.AfterFunc(patience, r.moved.Broadcast)
	defer timer.Stop()
	deadline := time.Now().Add(patience)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		for r.answers[op] == 0 && time.Now().Before(deadline) {
			r.moved.Wait()
		}
		require.Equal(t, 1, r.answers[op], "answers to %+v", op)
	}
}

func (r *recorder) waitLost(t *testing.T) error {
	t.Helper()
	select {
	case <-r.gone:
		return r.cause
	case <-time.After(patience):
		require.Fail(t, "the anchor was not lost")
		return nil
	}
}

// fixture is an anchor on a database of its own.
type fixture struct {
	*recorder
	*anchor
	t     *testing.T
	dsn   string
	proxy *testkit.Proxy
	pid   uint32
	admin *pgx.Conn
}

func open(t *testing.T, ttl time.Duration) *fixture {
	t.Helper()
	dsn := testkit.Migrated(t)
	proxy, cfg := testkit.Through(t, dsn)
	f := &fixture{t: t, dsn: dsn, proxy: proxy, admin: testkit.Connect(t, dsn)}
	f.connect(cfg, ttl)
	return f
}

// connect opens another anchor, through the same network.
func (f *fixture) connect(cfg *pgx.ConnConfig, ttl time.Duration) {
	f.t.Helper()
	dialer := &session.Dialer{Config: cfg, TTL: ttl}
	s, err := dialer.Dial(context.Background(), session.Holding)
	require.NoError(f.t, err)
	f.pid = s.PgConn().PID()
	f.recorder = newRecorder()
	e := New(Config{TTL: ttl, Budget: session.NewBudget(4), Report: func(string, error) {}})
	e.manager = f.recorder
	f.anchor = &anchor{engine: e, drawn: s.Drawn}
	a := f.anchor
	a.requests, err = pipeline.New(context.Background(), s, pipeline.Owner[*engine.Request](&tap{a, f.recorder}),
		pipeline.Config{TTL: ttl, Workers: &e.pipes})
	require.NoError(f.t, err)
	f.t.Cleanup(func() { _ = a.close(context.Background()); e.pipes.Wait() })
}

// do submits operations and waits for their answers as a caller does.
func (f *fixture) do(ops ...*engine.Request) {
	f.t.Helper()
	f.Submit(ops...)
	f.Help(context.Background(), func() bool { return f.answered(ops...) })
	f.wait(f.t, ops...)
}

// holdings is what the server says that the anchor holds.
func (f *fixture) holdings() map[advisory.Hold]bool {
	f.t.Helper()
	rows, err := f.admin.Query(context.Background(), `SELECT (classid::int8 << 32) | objid::int8, objsubid = 2, mode = 'ShareLock'
		FROM pg_locks WHERE locktype = 'advisory' AND pid = $1`, int32(f.pid)) //nolint:gosec // a pid
	require.NoError(f.t, err)
	held := map[advisory.Hold]bool{}
	var h advisory.Hold
	var inShareMode bool
	_, err = pgx.ForEachRow(rows, []any{&h.Key.ID, &h.Key.Pair, &inShareMode}, func() error {
		h.Mode = advisory.Exclusive
		if inShareMode {
			h.Mode = advisory.Shared
		}
		held[h] = true
		return nil
	})
	require.NoError(f.t, err)
	return held
}

// difference is what only one of two sets has.
func difference(a, b map[advisory.Hold]bool) []string {
	var only []string
	for h := range a {
		if !b[h] {
			only = append(only, fmt.Sprintf("first only: %+v", h))
		}
	}
	for h := range b {
		if !a[h] {
			only = append(only, fmt.Sprintf("second only: %+v", h))
		}
	}
	return only
}
