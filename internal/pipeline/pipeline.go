package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

const (
	// WriteBuffer is the size of the socket's buffer, in bytes.
	WriteBuffer = 128 << 10
	// maxFlight is how many round trips may be under way: with two the server works on one while the
	// client digests the other. Through a pooler there is one, see [echo].
	maxFlight = 2
	// idleAfter is when a pipeline without traffic gets its idle read.
	idleAfter = 2 * time.Millisecond
)

// Config is what a pipeline needs beside its session and its owner.
type Config struct {
	TTL      time.Duration
	Notified func(payload string) // called by the reader for each notification; it must not wait; nil if nobody listens
	Workers  *sync.WaitGroup      // to which the pipeline's goroutines belong
	// Silence is how long the pipeline sends nothing before it shows a sign of life, a third of TTL if it is zero. An owner that
	// sends statements more often needs no sign.
	Silence time.Duration
}

// Pipeline is a session that many callers share, for operations of type O.
type Pipeline[O any] struct {
	cfg   Config
	room  int // round trips that may be under way
	conn  net.Conn
	front *pgproto3.Frontend
	owner Owner[O]
	left  func() // tells the session's home that it is closed

	born    time.Time
	trusted atomic.Int64 // when trust ends, in nanoseconds after born

	socket socket
	writer Writer     // used by the goroutine that has set sending
	signal *Statement // of life

	mu          sync.Mutex
	queue       []O         // submitted, unsent
	asides      []aside     // to go with the next round trip
	flight      []*batch[O] // sent, unanswered, oldest first
	failed      []*batch[O] // answered with an error, to be set right once flight is empty
	spare       []*batch[O] // to be used again
	sending     bool
	sent        *sync.Cond // sending has ended
	reading     bool
	turn        uint64 // counts the readers; an interrupt is for one of them
	interrupted bool
	attended    bool // the pipeline's own reader is reading
	lastSent    time.Time
	lastAnswer  time.Time
	closed      bool
	cause       error

	wake  chan struct{} // something for the pipeline's own reader
	nudge chan struct{} // something for the keeper
	done  chan struct{} // closed when the pipeline is
}

// New makes a pipeline of a session and takes the session over, also on failure.
func New[O any](ctx context.Context, s *session.Session, owner Owner[O], cfg Config) (*Pipeline[O], error) {
	pg := s.PgConn()
	ctx, cancel := context.WithTimeout(ctx, cfg.TTL)
	defer cancel()
	if err := pg.SyncConn(ctx); err != nil {
		s.HangUp() //nolint:contextcheck // also when ctx has ended
		return nil, err
	}
	hijacked, err := pg.Hijack()
	if err != nil {
		s.HangUp() //nolint:contextcheck // also when ctx has ended
		return nil, err
	}
	born := s.Heard // trust starts here: the server's clock for silence started no earlier
	p := &Pipeline[O]{
		cfg: cfg, conn: hijacked.Conn, front: hijacked.Frontend, owner: owner, born: born,
		lastSent: born, lastAnswer: born, left: s.Left,
		wake: make(chan struct{}, 1), nudge: make(chan struct{}, 1), done: make(chan struct{}),
	}
	p.writer = Writer{front: p.front, pooled: s.Pooled, relayed: s.Relayed, prepared: map[*Statement]bool{}}
	if p.room = maxFlight; s.Relayed {
		p.room = 1
	}
	if p.signal = &stmtPing; s.Portable {
		p.signal = &stmtPortablePing
	}
	p.sent = sync.NewCond(&p.mu)
	p.trusted.Store(int64(p.trustSpan()))
	p.socket.open(raw(p.conn))
	if socket, ok := raw(p.conn).(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = socket.SetWriteBuffer(WriteBuffer) // a smaller one only makes a write wait on a stalled network
	}
	cfg.Workers.Add(2)
	go p.attend()
	go p.keepAlive()
	s.OnMove(func(cause error) {
		p.Fail(cause)
		<-p.done // another may be telling the owner already
	})
	return p, nil
}

// Submit hands operations over. Each will be answered to the owner. It writes to the socket when fewer than
// maxFlight round trips are under way. It does not wait for answers: Help or Attend must follow.
func (p *Pipeline[O]) Submit(ops ...O) {
	p.mu.Lock()
	if p.closed {
		cause := p.cause
		p.mu.Unlock()
		p.owner.Lost(ops, cause)
		return
	}
	p.queue = p.owner.Enqueue(p.queue, ops)
	p.mu.Unlock()
	p.pump()
}

// Ask has a statement without parameters ride with the next round trip. Its rows are in binary form; then, unless it is
// nil, is told how the statement ended, and must not wait. Help or Attend must follow.
func (p *Pipeline[O]) Ask(statement *Statement, sink Sink, then func(err error)) {
	asked := aside{statement, sink, then}
	p.mu.Lock()
	if p.closed {
		cause := p.cause
		p.mu.Unlock()
		conclude([]aside{asked}, cause)
		return
	}
	p.asides = append(p.asides, asked)
	p.mu.Unlock()
	p.pump()
}

// pump sends what may be sent.
func (p *Pipeline[O]) pump() {
	p.mu.Lock()
	for !p.sending && !p.closed && len(p.queue)+len(p.asides) > 0 && len(p.flight) < p.room && len(p.failed) == 0 {
		b := p.load()
		p.sending = true
		p.mu.Unlock()
		b.write(&p.writer)
		err := p.front.Flush()
		p.mu.Lock()
		p.sending = false
		p.sent.Broadcast()
		if err != nil {
			p.mu.Unlock()
			p.Fail(lossOf(err))
			return
		}
	}
	p.mu.Unlock()
}

// load moves what waits into a batch and the batch into flight. The caller holds mu.
func (p *Pipeline[O]) load() *batch[O] {
	var b *batch[O]
	if last := len(p.spare) - 1; last >= 0 {
		b, p.spare = p.spare[last], p.spare[:last]
	} else {
		b = &batch[O]{round: p.owner.NewRound()}
	}
	n := 0
	if len(p.queue) > 0 {
		n = p.owner.Fits(p.queue)
	}
	if n == len(p.queue) {
		b.ops, p.queue = p.queue, b.ops
	} else {
		b.ops = append(b.ops, p.queue[:n]...)
		p.queue = append(p.queue[:0], p.queue[n:]...)
	}
	b.asides, p.asides = p.asides, b.asides
	b.sent = time.Now()
	p.lastSent = b.sent
	p.flight = append(p.flight, b)
	p.socket.asked.Store(int32(len(p.flight))) //nolint:gosec // at most maxFlight
	return b
}

// Fail ends the pipeline, once: the connection is closed, and all operations are lost.
func (p *Pipeline[O]) Fail(cause error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed, p.cause = true, cause
	var unanswered []O
	var asides []aside
	for _, b := range append(p.failed, p.flight...) {
		unanswered = append(unanswered, b.ops...)
		asides = append(asides, b.asides...)
	}
	unanswered = append(unanswered, p.queue...)
	asides = append(asides, p.asides...)
	p.queue, p.asides, p.flight, p.failed = nil, nil, nil, nil
	p.mu.Unlock()

	// The owner first: closing the connection frees what the session holds for others.
	p.owner.Lost(unanswered, cause)
	closeNow(p.conn)
	p.left()
	close(p.done)
	conclude(asides, cause)
	p.owner.Closed()
}

// Done is closed when the pipeline has failed, its owner was told, and the connection is closed.
func (p *Pipeline[O]) Done() <-chan struct{} { return p.done }

// Pooled reports whether each round trip may run in another session of the server's.
func (p *Pipeline[O]) Pooled() bool { return p.writer.pooled }

// Close sends a last statement, or a sign of life if it is nil, waits for its answer until ctx ends or trust does, and
// ends the pipeline. The error says that the answer did not come.
func (p *Pipeline[O]) Close(ctx context.Context, last *Statement) error {
	var sink Sink = deaf{}
	if last == nil {
		last, sink = p.signal, pulse{}
	}
	answered := make(chan error, 1)
	p.Ask(last, sink, func(err error) { answered <- err })
	p.Attend()
	var err error
	select {
	case err = <-answered:
		if last == p.signal && errors.Is(err, ErrRetry) {
			err = nil // it had to give way to other transactions, but it was answered, which is all that it asks for
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.mu.Lock()
	polite := !p.closed && !p.sending && len(p.flight) == 0 && len(p.failed) == 0
	if polite {
		p.sending = true
	}
	p.mu.Unlock()
	if polite {
		_ = p.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		p.front.Send(&pgproto3.Terminate{})
		_ = p.front.Flush() // the close that follows says the same
	}
	p.Fail(lockerr.ClosedLoss)
	return err
}

// closeNow closes a connection without TLS's farewell, which may wait for the network.
func closeNow(conn net.Conn) { _ = raw(conn).Close() }

// raw is the connection under TLS.
func raw(conn net.Conn) net.Conn {
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return wrapped.NetConn()
	}
	return conn
}

// lossOf turns what ended a read or a write into a cause for people.
func lossOf(err error) error {
	if loss := (*lockerr.LossError)(nil); errors.As(err, &loss) {
		return loss
	}
	reason := lockerr.ConnectionLost
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		reason, err = fatal(pgErr.Code), pgerr.Explain(err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("the server closed it: %w", err)
	}
	return &lockerr.LossError{Reason: reason, Cause: err}
}

// fatal returns the reason behind the SQLSTATE of a FATAL message.
func fatal(code string) lockerr.LossReason {
	switch code {
	case pgerr.AdminShutdown: // pg_terminate_backend, or a shutdown of the server
		return lockerr.Terminated
	case pgerr.CrashShutdown, pgerr.CannotConnectNow:
		return lockerr.ServerRestarted
	case pgerr.IdleSessionTimeout:
		return lockerr.LeaseExpired
	}
	return lockerr.ConnectionLost
}
