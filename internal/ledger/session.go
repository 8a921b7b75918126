package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Session is a connection of the ledger.
type Session struct {
	Holder int64 // whom the rows that it writes belong to

	ledger *Ledger
	link   *link.Link
	cause  error // why it was lost; guarded by the ledger's mutex
}

// Completion is the Owner of an operation that wants to know its answer. It is called once, on a goroutine
// that must not be kept waiting. Err is set when the operation did not run, or nobody can tell: then
// it matches Lost.
type Completion func(op *link.Op)

var (
	_ link.Handler  = (*Session)(nil)
	_ link.Listener = (*Session)(nil)
)

// Submit hands operations over; see [link.Link.Submit]. Help or Attend must follow.
func (s *Session) Submit(ops ...*link.Op) {
	s.ledger.use()
	s.link.Submit(ops...)
}

// Help reads answers while the caller waits for its own; see [link.Link.Help].
func (s *Session) Help(ctx context.Context, done func() bool) { s.link.Help(ctx, done) }

// Attend makes sure that somebody reads the answers.
func (s *Session) Attend() { s.link.Attend() }

// CatchUp makes sure that what the server has said by now is known; see [link.Link.CatchUp].
func (s *Session) CatchUp() { s.link.CatchUp(context.Background()) }

// Jeopardy is that of the link.
func (s *Session) Jeopardy() <-chan struct{} { return s.link.Jeopardy() }

// Alive says whether the session has not been lost.
func (s *Session) Alive() bool {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	return s.cause == nil
}

// query runs a statement and waits for its rows until ctx ends.
func (s *Session) query(ctx context.Context, statement *link.Statement, params [][]byte) ([][][]byte, error) {
	answered := make(question)
	op := &link.Op{Kind: link.Call, Call: statement, Params: params, Owner: answered}
	s.Submit(op)
	s.Help(ctx, func() bool { return chans.Closed(answered) })
	select {
	case <-answered:
		return op.Rows, op.Err
	case <-ctx.Done():
		return nil, s.ledger.ended(ctx)
	}
}

// maxRetries is how often an operation runs again that failed through no fault of its own.
const maxRetries = 5

// Complete implements [link.Handler].
func (s *Session) Complete(ops []*link.Op, _ []int64) {
	for _, op := range ops {
		if _, asked := op.Owner.(question); !asked && errors.Is(op.Err, link.ErrRetry) && op.Retries < maxRetries {
			op.Retries++
			op.Err = nil
			op.Alone = op.Alone || op.Retries > 1 // not with others that fail
			s.Submit(op)
			continue
		}
		complete(op)
	}
}

// Lost implements [link.Handler].
func (s *Session) Lost(ops []*link.Op, cause error) {
	l := s.ledger
	l.mu.Lock()
	first := s.cause == nil
	if first {
		s.cause = cause
	}
	present := l.session == s
	var observers []Observer
	if present {
		l.session = nil
		l.gone = append(l.gone, s.link)
		observers = l.observers
	}
	report := present && !l.closed
	l.mu.Unlock()
	for _, o := range observers {
		o.Lost(s, cause)
	}
	for _, op := range ops {
		op.Err = fmt.Errorf("%w: %w", lockerr.Lost, cause)
		complete(op)
	}
	if report {
		l.cfg.Report("the connection for semaphores, leaders and Once was lost", cause)
	}
}

// Closed implements [link.Handler].
func (s *Session) Closed() {
	s.ledger.cfg.Hung()
	chans.Signal(s.ledger.want)
}

// Notified implements [link.Listener].
func (s *Session) Notified(payload string) { s.ledger.notified(payload) }

func complete(op *link.Op) {
	switch owner := op.Owner.(type) {
	case Completion:
		owner(op)
	case question:
		close(owner)
	}
}

// dial opens a session that is a holder and listens.
func (l *Ledger) dial() (*Session, error) {
	s := &Session{ledger: l, Holder: l.pooledID}
	if !l.cfg.Pooled {
		s.Holder = 1 + rand.Int64N(maxID) //nolint:gosec // only has to be unlike others
	}
	commands := []session.Command{{
		What: "become a holder of rows", SQL: "SELECT pgbaton.enlist($1, $2)",
		Params: [][]byte{strconv.AppendInt(nil, s.Holder, 10), []byte(l.cfg.Name)},
	}}
	if !l.cfg.Pooled {
		commands = append(commands, session.Command{What: "listen", SQL: "LISTEN pgbaton"})
	}
	conn, err := l.cfg.Dial(l.ctx, commands...)
	if err != nil {
		return nil, err
	}
	s.link, err = link.New(l.ctx, conn, l.cfg.TTL, s)
	if err != nil {
		l.cfg.Hung()
		return nil, err
	}
	return s, nil
}
