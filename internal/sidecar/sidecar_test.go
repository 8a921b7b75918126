package sidecar

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const patience = testkit.Patience

var stmtPid = pipeline.Statement{Name: "pid", SQL: "SELECT pg_backend_pid()"}

// fixture is a sidecar on a database of its own, which writes down what it is told.
type fixture struct {
	*Sidecar
	dsn   string
	proxy *testkit.Proxy

	mu     sync.Mutex
	opened []*Session
	failed []error
	lost   []*Session
	open   int // connections
}

func newFixture(t *testing.T, pooled bool) *fixture {
	t.Helper()
	f := &fixture{dsn: testkit.Migrated(t)}
	var cfg *pgx.ConnConfig
	f.proxy, cfg = testkit.Through(t, f.dsn)
	dialer := &session.Dialer{Config: cfg, TTL: 6 * time.Second}
	f.Sidecar = New(Config{
		TTL: dialer.TTL, Name: "me", Pooled: pooled, Report: func(string, error) {},
		Dial: func(ctx context.Context, commands ...session.Command) (*session.Session, error) {
			dial := func() (*session.Session, error) { return dialer.Dial(ctx, session.Sidecar, commands...) }
			if pooled {
				dial = func() (*session.Session, error) { return dialer.DialPooled(ctx, commands...) }
			}
			s, err := dial()
			if err == nil {
				f.note(func() { f.open++ })
			}
			return s, err
		},
		Hung: func() { f.note(func() { f.open-- }) },
	})
	f.Observe(f)
	t.Cleanup(func() { require.NoError(t, f.Close(context.Background())) })
	return f
}

func (f *fixture) note(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fixture) Opened(s *Session)         { f.note(func() { f.opened = append(f.opened, s) }) }
func (f *fixture) Failed(err error)          { f.note(func() { f.failed = append(f.failed, err) }) }
func (f *fixture) Lost(s *Session, _ error)  { f.note(func() { f.lost = append(f.lost, s) }) }
func (f *fixture) count() (opened, lost int) { return len(f.opened), len(f.lost) }

func (f *fixture) within(t *testing.T, condition func() bool) {
	t.Helper()
	require.Eventually(t, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return condition()
	}, patience, time.Millisecond)
}

func TestSidecar_OpensWhenNeeded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	time.Sleep(50 * time.Millisecond)
	require.Zero(t, f.proxy.Dialled())
	rows, err := f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	require.Len(t, rows, 1)
	holder, err := f.Holder(t.Context())
	require.NoError(t, err)
	admin := testkit.Connect(t, f.dsn)
	require.Equal(t, "me", testkit.Value[string](t, admin, "SELECT name FROM pgbaton.holder WHERE id = $1", holder))
	require.True(t, testkit.Value[bool](t, admin, "SELECT pgbaton.present($1)", holder))
}

// What is to be alone has a transaction of its own, in its turn; the others share theirs.
func TestSidecar_Alone(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	_, err := f.Holder(t.Context())
	require.NoError(t, err)
	var s *Session
	f.within(t, func() bool {
		if len(f.opened) == 0 {
			return false
		}
		s = f.opened[0]
		return true
	})
	transaction := pipeline.Statement{Name: "transaction", SQL: "SELECT pg_current_xact_id()"}
	ops, answered := make([]*Op, 5), sync.WaitGroup{}
	for i := range ops {
		answered.Add(1)
		ops[i] = &Op{Statement: &transaction, Alone: i == 2, Then: func(*Op) { answered.Done() }}
	}
	s.Submit(ops...)
	s.Attend()
	answered.Wait()
	var ids []string
	for _, op := range ops {
		require.NoError(t, op.Err)
		ids = append(ids, string(op.Rows[0][0]))
	}
	require.Equal(t, ids[0], ids[1])
	require.NotContains(t, append(ids[:2:2], ids[3:]...), ids[2])
	require.Equal(t, ids[3], ids[4])
	require.NotEqual(t, ids[0], ids[3])
}

// A session that is lost is replaced, under a new name; its end is seen at once.
func TestSidecar_Reopens(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	before, err := f.Holder(t.Context())
	require.NoError(t, err)
	rows, err := f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	admin := testkit.Connect(t, f.dsn)
	testkit.Value[bool](t, admin, "SELECT pg_terminate_backend($1::text::int)", string(rows[0][0]))
	f.within(t, func() bool { opened, lost := f.count(); return opened == 2 && lost == 1 })
	after, err := f.Holder(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	require.False(t, testkit.Value[bool](t, admin, "SELECT pgbaton.present($1)", before))
	require.False(t, f.opened[0].Alive())
	require.True(t, f.opened[1].Alive())
	f.within(t, func() bool { return f.open == 1 })
}

// Behind a pooler the holder outlives its connections.
func TestSidecar_Pooled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, true)
	before, err := f.Holder(t.Context())
	require.NoError(t, err)
	require.Negative(t, before)
	f.proxy.Cut()
	f.within(t, func() bool { opened, _ := f.count(); return opened == 2 })
	after, err := f.Holder(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestSidecar_Notifications(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	heard := make(chan string, 10)
	stop := f.Subscribe("a:", func(payload string) { heard <- payload })
	_, err := f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	for _, payload := range []string{"b:0", "a:1"} {
		f.Notify(payload)
	}
	require.Equal(t, "a:1", <-heard)
	admin := testkit.Connect(t, f.dsn)
	time.Sleep(20 * time.Millisecond) // it stands by
	_, err = admin.Exec(t.Context(), "NOTIFY pgbaton, 'a:2'")
	require.NoError(t, err)
	require.Equal(t, "a:2", <-heard)
	stop()
	f.Notify("a:3")
	_, err = f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	require.Empty(t, heard)
}

// Queries that share a transaction with one that fails run again.
func TestSidecar_OneFailure(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			divide := pipeline.Statement{Name: "divide", SQL: "SELECT 100 / $1::integer"}
			rows, err := f.Query(t.Context(), &divide, []byte(strconv.Itoa(i%6)))
			var ok bool
			if i%6 == 0 {
				ok = err != nil && !errors.Is(err, pipeline.ErrRetry)
			} else {
				ok = err == nil && string(rows[0][0]) == fmt.Sprint(100/(i%6))
			}
			if !ok {
				t.Error(i, err)
			}
		})
	}
	wg.Wait()
}

func TestSidecar_NoServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	f.proxy.Refuse(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := f.Query(ctx, &stmtPid)
		answer <- err
	}()
	f.within(t, func() bool { return len(f.failed) > 1 })
	require.Empty(t, answer, "it goes on trying")
	cancel()
	err := <-answer
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "there is no connection")
	go func() {
		_, err := f.Query(t.Context(), &stmtPid)
		answer <- err
	}()
	f.proxy.Refuse(false)
	require.NoError(t, <-answer)
	f.note(func() { require.Len(t, f.opened, 1) })
}

// A server that will not do is told of at once.
func TestSidecar_WrongGround(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	testkit.Run(t, f.dsn, "DROP SCHEMA pgbaton CASCADE")
	_, err := f.Query(t.Context(), &stmtPid)
	require.ErrorIs(t, err, lockerr.Schema)
}

// Sessions that are ended again and again fail no query.
func TestSidecar_Storm(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	_, err := f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	admin := testkit.Connect(t, f.dsn)
	over := make(chan struct{})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if _, err := f.Query(t.Context(), &stmtPid); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range testkit.Rounds(60) {
		testkit.Exec(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "+
			"WHERE datname = current_database() AND pid <> pg_backend_pid()")
		time.Sleep(50 * time.Millisecond)
	}
	close(over)
	wg.Wait()
}

// The wait for an answer ends with the context, the session goes on.
func TestSidecar_ContextEnds(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	before, err := f.Holder(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = f.Query(ctx, &pipeline.Statement{Name: "sleep", SQL: "SELECT pg_sleep(0.3)"})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	testkit.Figure(t, "a query with a context of 20 ms returned after %v", time.Since(start))
	_, err = f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	after, err := f.Holder(t.Context())
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestSidecar_Closed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	_, err := f.Query(t.Context(), &stmtPid)
	require.NoError(t, err)
	require.NoError(t, f.Close(t.Context()))
	_, err = f.Query(t.Context(), &stmtPid)
	require.ErrorIs(t, err, lockerr.Closed)
	require.Zero(t, f.open)
}

// A session that is opened while the sidecar is closed is closed with it.
func TestSidecar_CloseWhileOpening(t *testing.T) {
	t.Parallel()
	f := newFixture(t, false)
	s, err := f.dial()
	require.NoError(t, err)
	f.workers.Add(1) // as if the goroutine that opens sessions had come so far
	closed := make(chan error, 1)
	go func() { closed <- f.Close(context.Background()) }()
	<-f.ctx.Done()
	f.present(s)
	f.workers.Done()
	require.NoError(t, <-closed)
	require.False(t, s.Alive())
	f.note(func() { require.Zero(t, f.open) })
}

// Who may open no more connections is told so each time, and tries only when it is asked; who may in a moment is waited
// for.
func TestSidecar_NoConnection(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	dials, reports, reason := 0, 0, fmt.Errorf("%w: for good", ErrNoConnection)
	l := New(Config{
		TTL: time.Second, Name: "me",
		Report: func(string, error) { mu.Lock(); defer mu.Unlock(); reports++ },
		Dial: func(context.Context, ...session.Command) (*session.Session, error) {
			mu.Lock()
			defer mu.Unlock()
			dials++
			return nil, reason
		},
	})
	for range 2 {
		_, err := l.Query(t.Context(), &stmtPid)
		require.ErrorIs(t, err, ErrNoConnection)
	}
	time.Sleep(200 * time.Millisecond)
	mu.Lock()
	require.LessOrEqual(t, dials, 2)
	require.Zero(t, reports)
	reason, dials = ErrBusy, 0
	mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		_, err := l.Query(ctx, &stmtPid)
		answer <- err
	}()
	require.Eventually(t, func() bool { mu.Lock(); defer mu.Unlock(); return dials > 2 }, patience, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-answer, context.Canceled)
	require.NoError(t, l.Close(t.Context()))
	require.Zero(t, reports)
}
