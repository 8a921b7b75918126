package pipeline

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// call is an operation: a statement and, once answered, its result.
type call struct {
	statement *Statement
	params    [][]byte

	rows     [][][]byte
	err      error
	culprit  bool
	sent     time.Time
	answered chan struct{} // closed when answered; a second answer panics
}

func newCall(s *Statement, params ...string) *call {
	c := &call{statement: s, answered: make(chan struct{})}
	for _, p := range params {
		c.params = append(c.params, []byte(p))
	}
	return c
}

// Row implements [Sink].
func (c *call) Row(values [][]byte) error {
	c.rows = append(c.rows, CopyRow(values))
	return nil
}

// fixture is a pipeline of calls on a database of its own, and its owner.
type fixture struct {
	*Pipeline[*call]
	t     *testing.T
	proxy *testkit.Proxy
	admin *pgx.Conn
	pid   uint32

	workers sync.WaitGroup
	repair  func(r *Repairer[*call], failed []*call) error
	gone    chan struct{}
	cause   error // valid when gone is closed
	closed  chan struct{}
}

func open(t *testing.T, ttl time.Duration, pooled bool) *fixture {
	t.Helper()
	dsn := testkit.Migrated(t)
	f := &fixture{t: t, admin: testkit.Connect(t, dsn), gone: make(chan struct{}), closed: make(chan struct{})}
	var cfg *pgx.ConnConfig
	f.proxy, cfg = testkit.Through(t, dsn)
	dialer := &session.Dialer{Config: cfg, TTL: ttl}
	dial := func() (*session.Session, error) { return dialer.Dial(t.Context(), session.Holding) }
	if pooled {
		dial = func() (*session.Session, error) { return dialer.DialPooled(t.Context()) }
	}
	s, err := dial()
	require.NoError(t, err)
	f.pid = s.PgConn().PID()
	f.Pipeline, err = New(t.Context(), s, Owner[*call](f), Config{TTL: ttl, Workers: &f.workers})
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = f.Close(context.Background(), nil)
		f.workers.Wait()
		<-f.closed
	})
	return f
}

func (f *fixture) Enqueue(waiting, ops []*call) []*call { return append(waiting, ops...) }
func (f *fixture) Fits(waiting []*call) int             { return min(len(waiting), 100) }
func (f *fixture) NewRound() Round[*call]               { return calls{} }
func (f *fixture) Closed()                              { close(f.closed) }

func (f *fixture) Repair(r *Repairer[*call], failed []*call) error {
	if f.repair == nil {
		return nil
	}
	return f.repair(r, failed)
}

func (f *fixture) Lost(unanswered []*call, cause error) {
	select {
	case <-f.gone:
	default:
		f.cause = cause
		close(f.gone)
	}
	for _, c := range unanswered {
		c.err = cause
		close(c.answered)
	}
}

// calls is a transaction of calls.
type calls struct{}

func (calls) Encode(w *Writer, ops []*call) {
	for _, c := range ops {
		w.SendText(c.statement, c, c.params)
	}
}

func (calls) Check() error { return nil }

func (calls) Complete(ops []*call, sent time.Time) {
	for _, c := range ops {
		c.sent = sent
		close(c.answered)
	}
}

func (calls) Refuse(ops []*call, culprit Sink, err *pgconn.PgError) {
	for _, c := range ops {
		c.rows, c.err, c.culprit = nil, Refusal(err), culprit == Sink(c)
		close(c.answered)
	}
}

// do submits calls and waits for their answers as a caller does.
func (f *fixture) do(ops ...*call) {
	f.t.Helper()
	f.Submit(ops...)
	for _, c := range ops {
		f.Help(context.Background(), func() bool { return chans.Closed(c.answered) })
		f.answer(c)
	}
}

func (f *fixture) answer(c *call) {
	f.t.Helper()
	select {
	case <-c.answered:
	case <-time.After(time.Minute):
		require.Fail(f.t, "no answer")
	}
}

func (f *fixture) waitLost() error {
	f.t.Helper()
	select {
	case <-f.gone:
	case <-time.After(time.Minute):
		require.Fail(f.t, "the pipeline was not lost")
	}
	return f.cause
}
