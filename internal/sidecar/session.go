package sidecar

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Session is a connection of the sidecar.
type Session struct {
	Holder int64 // whom the rows that it writes belong to

	sidecar *Sidecar
	pipe    *pipeline.Pipeline[*Op]
	cause   error // why it was lost; guarded by the sidecar's mutex
}

// Submit hands operations over; see [pipeline.Pipeline.Submit]. Help or Attend must follow.
func (s *Session) Submit(ops ...*Op) {
	s.sidecar.use()
	s.pipe.Submit(ops...)
}

// Help reads answers while the caller waits for its own; see [pipeline.Pipeline.Help].
func (s *Session) Help(ctx context.Context, done func() bool) { s.pipe.Help(ctx, done) }

// Attend makes sure that somebody reads the answers.
func (s *Session) Attend() { s.pipe.Attend() }

// CatchUp makes sure that what the server has said by now is known; see [pipeline.Pipeline.CatchUp].
func (s *Session) CatchUp() { s.pipe.CatchUp(context.Background()) }

// Alive reports whether the session has not been lost.
func (s *Session) Alive() bool {
	s.sidecar.mu.Lock()
	defer s.sidecar.mu.Unlock()
	return s.cause == nil
}

// query runs a statement and waits for its rows until ctx ends.
func (s *Session) query(ctx context.Context, statement *pipeline.Statement, params [][]byte) ([][][]byte, error) {
	op := &Op{Statement: statement, Params: params, asked: make(chan struct{})}
	s.Submit(op)
	s.Help(ctx, func() bool { return chans.Closed(op.asked) })
	select {
	case <-op.asked:
		return op.Rows, op.Err
	case <-ctx.Done():
		return nil, s.sidecar.ended(ctx)
	}
}

// Lost implements [pipeline.Owner].
func (s *Session) Lost(ops []*Op, cause error) {
	c := s.sidecar
	c.mu.Lock()
	first := s.cause == nil
	if first {
		s.cause = cause
	}
	present := c.session == s
	var observers []Observer
	if present {
		c.session = nil
		observers = c.observers
	}
	report := present && !c.closed
	c.mu.Unlock()
	for _, o := range observers {
		o.Lost(s, cause)
	}
	for _, op := range ops {
		op.Err = fmt.Errorf("%w: %w", lockerr.Lost, cause)
		op.answer()
	}
	if report {
		c.cfg.Report("the connection for semaphores, leaders and Once was lost", cause)
	}
}

// Closed implements [pipeline.Owner].
func (s *Session) Closed() {
	s.sidecar.cfg.Hung()
	chans.Signal(s.sidecar.want)
}

// dial opens a session that is a holder and listens.
func (c *Sidecar) dial() (*Session, error) {
	s := &Session{sidecar: c, Holder: c.pooledID}
	if !c.cfg.Pooled {
		s.Holder = 1 + rand.Int64N(maxID) //nolint:gosec // only has to be unlike others
	}
	commands := []session.Command{{
		What: "become a holder of rows", SQL: "SELECT pgbaton.enlist($1, $2)",
		Params: [][]byte{strconv.AppendInt(nil, s.Holder, 10), []byte(c.cfg.Name)},
	}}
	if !c.cfg.Pooled {
		// integration_test/internal/storm knows the session by this statement.
		commands = append(commands, session.Command{What: "listen", SQL: "LISTEN pgbaton"})
	}
	conn, err := c.cfg.Dial(c.ctx, commands...)
	if err != nil {
		return nil, err
	}
	s.pipe, err = pipeline.New(c.ctx, conn, pipeline.Owner[*Op](s), pipeline.Config{
		TTL: c.cfg.TTL, Notified: c.notified, Workers: &c.pipes,
	})
	if err != nil {
		c.cfg.Hung()
		return nil, err
	}
	return s, nil
}

var stmtUnlockAll = pipeline.Statement{Name: "pgbaton_free", SQL: "SELECT count(pg_advisory_unlock_all())"}

// close ends the session. By then the server knows that the holder is gone, unless the error says otherwise.
func (s *Session) close(ctx context.Context) error {
	last := &stmtUnlockAll // the holder's key
	if s.pipe.Pooled() {
		last = nil // there is nothing to unlock, and the session may be somebody else's by now
	}
	if err := s.pipe.Close(ctx, last); err != nil {
		return fmt.Errorf("close: the server did not confirm that the locks are free: %w", err)
	}
	return nil
}
