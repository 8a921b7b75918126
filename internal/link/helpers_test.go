package link

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/dbtest"
	"github.com/pgbaton/pgbaton/internal/session"
)

const patience = dbtest.Patience

// recorder is a [Handler] that counts the answers.
type recorder struct {
	mu      sync.Mutex
	moved   *sync.Cond
	answers map[*Op]int
	draws   []int64
	lost    []*Op
	cause   error
	lostAt  time.Time
	gone    chan struct{} // closed when the link is lost
}

func newRecorder() *recorder {
	r := &recorder{answers: map[*Op]int{}, gone: make(chan struct{})}
	r.moved = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) Complete(ops []*Op, draws []int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		r.answers[op]++
	}
	r.draws = append(r.draws, draws...)
	r.moved.Broadcast()
}

func (r *recorder) Closed() {}

func (r *recorder) Lost(ops []*Op, cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range ops {
		r.answers[op]++
	}
	r.lost = append(r.lost, ops...)
	if r.cause == nil {
		r.cause, r.lostAt = cause, time.Now()
		close(r.gone)
	}
	r.moved.Broadcast()
}

func (r *recorder) answered(ops ...*Op) bool {
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
func (r *recorder) wait(t *testing.T, ops ...*Op) {
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
		require.Fail(t, "the link was not lost")
		return nil
	}
}

// fixture is a link on a database of its own.
type fixture struct {
	*recorder
	*Link
	t     *testing.T
	dsn   string
	proxy *dbtest.Proxy
	pid   uint32
	admin *pgx.Conn
}

func open(t *testing.T, ttl time.Duration) *fixture {
	t.Helper()
	dsn := dbtest.Migrated(t)
	proxy, cfg := dbtest.Through(t, dsn)
	f := &fixture{t: t, dsn: dsn, proxy: proxy, admin: dbtest.Connect(t, dsn)}
	f.connect(cfg, ttl)
	return f
}

// connect opens another link, through the same network.
func (f *fixture) connect(cfg *pgx.ConnConfig, ttl time.Duration) {
	f.t.Helper()
	dialer := &session.Dialer{Config: cfg, TTL: ttl}
	s, err := dialer.Dial(context.Background(), session.Link)
	require.NoError(f.t, err)
	f.pid = s.PgConn().PID()
	f.recorder = newRecorder()
	f.Link, err = New(context.Background(), s, ttl, f.recorder)
	require.NoError(f.t, err)
	l := f.Link
	f.t.Cleanup(func() { _ = l.Close(context.Background()) })
}

// do submits operations and waits for their answers as a caller does.
func (f *fixture) do(ops ...*Op) {
	f.t.Helper()
	f.Submit(ops...)
	f.Help(context.Background(), func() bool { return f.answered(ops...) })
	f.wait(f.t, ops...)
}

// held is what the server says that the link holds.
func (f *fixture) held() map[holding]bool {
	f.t.Helper()
	rows, err := f.admin.Query(context.Background(), `SELECT (classid::int8 << 32) | objid::int8, objsubid = 2, mode = 'ShareLock'
		FROM pg_locks WHERE locktype = 'advisory' AND pid = $1`, int32(f.pid)) //nolint:gosec // a pid
	require.NoError(f.t, err)
	held := map[holding]bool{}
	var h holding
	var inShareMode bool
	_, err = pgx.ForEachRow(rows, []any{&h.key.ID, &h.key.Pair, &inShareMode}, func() error {
		h.mode = advisory.Exclusive
		if inShareMode {
			h.mode = advisory.Shared
		}
		held[h] = true
		return nil
	})
	require.NoError(f.t, err)
	return held
}

// difference is what only one of two sets has.
func difference(a, b map[holding]bool) []string {
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
