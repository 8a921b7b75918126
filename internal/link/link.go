package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

const (
	// maxBatch bounds one round trip, so that its request, some 30 bytes an operation, fits into the
	// socket's buffer and a write does not wait for the network.
	maxBatch    = 1024
	maxParams   = 32 << 10 // bytes in one round trip that carries Calls, for the same reason
	writeBuffer = 128 << 10
	// maxFlight is how many round trips may be under way: with two the server works on one while the
	// client digests the other.
	maxFlight = 2
	// idleAfter is when a link without traffic gets its standing read.
	idleAfter = 2 * time.Millisecond
)

// Kind is what an operation does.
type Kind uint8

const (
	Try       Kind = iota // lock the key if it is free
	TryPolite             // as TryAtGate if that costs next to nothing, because it goes alone; else as Try
	TryAtGate             // lock the key if it is free and no process queues for it
	Unlock                // unlock the key
	Downgrade             // turn the exclusive lock on the key into a shared one
	Draw                  // draw tokens only
	Gate                  // look whether no process queues for the key
	Ping                  // show a sign of life
	Look                  // count the locks in the server's table
	UnlockAll             // unlock everything
	Call                  // run a statement of the owner's own
)

// Op is one operation and, once completed, its result.
type Op struct {
	Kind  Kind
	Mode  advisory.Mode
	Key   advisory.Key
	Want  int           // tokens to draw with a grant (at least one is), or for Draw
	Owner any           // the handler's
	Done  chan struct{} // closed, if there is one, when the operation was answered or lost

	Call   *Statement // for Call
	Params [][]byte   // its parameters, as text; nil is NULL
	Alone  bool       // in a transaction of its own
	First  bool       // before all that are not First, and not in one transaction with them

	Retries int // the owner's

	Sent  time.Time  // when its round trip began
	Rows  [][][]byte // what a Call returned, as text; nil is NULL
	OK    bool       // granted, unlocked, downgraded, or for Gate: nobody is there
	Count int64      // for Look
	Err   error      // the server refused to run it; nothing is held by it, or for Unlock: all is as before
}

// locks says whether the operation locks or unlocks a key.
func (op *Op) locks() bool {
	return op.Kind == Unlock || op.Kind == Downgrade || op.Kind == Try || op.Kind == TryPolite || op.Kind == TryAtGate
}

// code is the operation's number in stmtMany.
func (op *Op) code() uint16 {
	var code uint16
	switch op.Kind {
	case TryAtGate:
		code = codeAtGate
	case Unlock:
		code = codeUnlock
	case Downgrade:
		code = codeDowngrade
	case Gate:
		return codeGate
	case Try, TryPolite, Draw, Ping, Look, UnlockAll, Call:
	}
	if op.Key.Pair {
		code += 2
	}
	if op.Mode == advisory.Shared {
		code++
	}
	return code
}

// Handler is told how operations ended. Its methods are called without any of the link's locks, by whichever
// goroutine reads or fails the link, and must not wait.
type Handler interface {
	// Complete tells the results of operations that made one round trip, and which tokens were drawn for
	// them, after all of them. It may come after Lost, when the link was failed while it was on its way:
	// what it grants was lost at once.
	Complete(ops []*Op, draws []int64)
	// Lost says that the link is gone with all its locks, and which operations were not answered. It comes
	// again for operations that are submitted afterwards.
	Lost(unanswered []*Op, cause error)
	// Closed says, once and after Lost, that the connection is closed.
	Closed()
}

// Listener is a Handler that wants the notifications of the channels that its session listens to.
type Listener interface {
	// Notified is called by the link's reader, and must not wait for anything.
	Notified(payload string)
}

// Link is a session that holds locks.
type Link struct {
	conn    net.Conn
	front   *pgproto3.Frontend
	handler Handler
	notify  func(payload string) // nil if the handler does not listen
	left    func()               // tells the session's home that it is closed
	ttl     time.Duration
	born    time.Time
	trusted atomic.Int64 // when trust ends, in nanoseconds after born

	socket socket

	jeopardy   jeopardy
	endangered atomic.Bool // jeopardy is raised

	encoder encoder // of whoever has set sending
	drawn   int64   // the newest draw, or what the sequence stood at; the reader's

	mu          sync.Mutex
	queue       []*Op    // submitted, unsent
	flight      []*batch // sent, unanswered, oldest first
	failed      []*batch // answered with an error, to be set right once flight is empty
	spare       *batch
	sending     bool
	sent        *sync.Cond // sending has ended
	reading     bool
	turn        uint64 // counts the readers; an interrupt is for one of them
	interrupted bool
	attended    bool // the link's own reader is reading
	lastSent    time.Time
	lastAnswer  time.Time
	closed      bool
	cause       error

	wake    chan struct{} // something for the link's own reader
	nudge   chan struct{} // something for the keeper
	done    chan struct{} // closed when the link is
	workers sync.WaitGroup
}

// New makes a link of a session and takes the session over, also on failure.
func New(ctx context.Context, s *session.Session, ttl time.Duration, handler Handler) (*Link, error) {
	pg := s.PgConn()
	ctx, cancel := context.WithTimeout(ctx, ttl)
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
	l := &Link{
		conn: hijacked.Conn, front: hijacked.Frontend, handler: handler, ttl: ttl, born: born,
		lastSent: born, lastAnswer: born, drawn: s.Drawn, left: s.Left,
		wake: make(chan struct{}, 1), nudge: make(chan struct{}, 1), done: make(chan struct{}),
	}
	l.encoder.pooled, l.encoder.prepared = s.Pooled, map[*Statement]bool{}
	if listener, ok := handler.(Listener); ok {
		l.notify = listener.Notified
	}
	l.sent = sync.NewCond(&l.mu)
	l.trusted.Store(int64(l.trustSpan()))
	l.socket.open(raw(l.conn))
	if socket, ok := raw(l.conn).(interface{ SetWriteBuffer(bytes int) error }); ok {
		_ = socket.SetWriteBuffer(writeBuffer) // a smaller one only makes a write wait on a stalled network
	}
	l.workers.Add(2)
	go l.attend()
	go l.keep()
	s.OnMove(func(cause error) {
		l.Fail(cause)
		<-l.done // another may be telling the holders already
	})
	return l, nil
}

// trustSpan is for how long after a message was sent its answer shows that the session lives. The margin
// is for telling the holders before the server can grant their locks to others.
func (l *Link) trustSpan() time.Duration { return l.ttl - l.ttl/10 }

// Trusted says whether, at a moment, the locks of the link can still be relied on.
func (l *Link) Trusted(now time.Time) bool {
	return int64(now.Sub(l.born)) < l.trusted.Load()
}

// Submit hands operations over. Each will be answered to the handler. It writes to the socket when fewer than
// maxFlight round trips are under way; it does not wait for answers: call Help or Attend next.
func (l *Link) Submit(ops ...*Op) {
	l.mu.Lock()
	if l.closed {
		cause := l.cause
		l.mu.Unlock()
		markDone(ops)
		l.handler.Lost(ops, cause)
		return
	}
	l.enqueue(ops)
	l.mu.Unlock()
	l.pump()
}

// enqueue appends operations to the queue, those that are First before the others. The caller holds mu.
func (l *Link) enqueue(ops []*Op) {
	urgent := func(op *Op) bool { return op.First }
	if len(l.queue) == 0 || !slices.ContainsFunc(ops, urgent) {
		l.queue = append(l.queue, ops...)
		return
	}
	for _, op := range ops {
		place := len(l.queue)
		if op.First && place > 0 && !l.queue[place-1].First {
			place = slices.IndexFunc(l.queue, func(other *Op) bool { return !other.First })
		}
		l.queue = slices.Insert(l.queue, place, op)
	}
}

// pump sends what may be sent.
func (l *Link) pump() {
	l.mu.Lock()
	for !l.sending && !l.closed && len(l.queue) > 0 && len(l.flight) < maxFlight && len(l.failed) == 0 {
		b := l.take()
		l.sending = true
		l.mu.Unlock()
		l.encoder.encode(l.front, b)
		err := l.front.Flush()
		l.mu.Lock()
		l.sending = false
		l.sent.Broadcast()
		if err != nil {
			l.mu.Unlock()
			l.Fail(lossOf(err))
			return
		}
	}
	l.mu.Unlock()
}

// take moves waiting operations into a batch and the batch into flight. The caller holds mu.
func (l *Link) take() *batch {
	b := l.spare
	l.spare = nil
	if b == nil {
		b = &batch{}
	}
	if n := fitting(l.queue); n == len(l.queue) {
		b.ops, l.queue = l.queue, b.ops
	} else {
		b.ops = append(b.ops, l.queue[:n]...)
		l.queue = append(l.queue[:0], l.queue[n:]...)
	}
	b.sent = time.Now()
	l.lastSent = b.sent
	l.flight = append(l.flight, b)
	l.socket.asked.Store(int32(len(l.flight))) //nolint:gosec // at most maxFlight
	return b
}

// fitting is how many of the waiting operations go into one transaction.
func fitting(queue []*Op) int {
	size := 0
	for i, op := range queue[:min(len(queue), maxBatch)] {
		for _, param := range op.Params {
			size += len(param)
		}
		if op.Alone || size > maxParams || op.First != queue[0].First {
			return max(i, 1)
		}
	}
	return min(len(queue), maxBatch)
}

// Fail ends the link, once: the connection is closed, all operations and locks are lost.
func (l *Link) Fail(cause error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed, l.cause = true, cause
	var unanswered []*Op
	for _, b := range append(l.failed, l.flight...) {
		unanswered = append(unanswered, b.ops...)
	}
	unanswered = append(unanswered, l.queue...)
	l.queue, l.flight, l.failed = nil, nil, nil
	l.mu.Unlock()

	l.raise()
	// The holders first: closing the connection frees the locks for others.
	l.handler.Lost(unanswered, cause)
	closeNow(l.conn)
	l.left()
	close(l.done)
	markDone(unanswered)
	l.handler.Closed()
}

// lossCause is why the link is closed.
func (l *Link) lossCause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

func markDone(ops []*Op) {
	for _, op := range ops {
		if op.Done != nil {
			close(op.Done)
		}
	}
}

// Expired is the cause of a link that cannot be trusted any more.
func (l *Link) Expired() error {
	return &lockerr.LossError{Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("no answer from the server to anything "+
		"sent in the last %v (TTL %v); this process or the network stood still", l.trustSpan(), l.ttl)}
}

// Close unlocks everything, waiting for the server's answer until ctx ends or trust does, and ends the
// link. It waits for the link's goroutines. The error says that the answer did not come.
func (l *Link) Close(ctx context.Context) error {
	free := &Op{Kind: UnlockAll, Done: make(chan struct{})}
	if l.encoder.pooled {
		free.Kind = Ping // there is nothing to unlock, and the session may be somebody else's by now
	}
	l.Submit(free)
	l.Attend()
	var err error
	select {
	case <-free.Done:
		if free.Kind == UnlockAll && !free.OK {
			if err = free.Err; err == nil {
				err = l.lossCause()
			}
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("close: the server did not confirm that the locks are free: %w", err)
	}
	l.mu.Lock()
	polite := !l.closed && !l.sending && len(l.flight) == 0 && len(l.failed) == 0
	if polite {
		l.sending = true
	}
	l.mu.Unlock()
	if polite {
		_ = l.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		l.front.Send(&pgproto3.Terminate{})
		_ = l.front.Flush() // the close that follows says the same
	}
	l.Fail(lockerr.ClosedLoss)
	l.workers.Wait()
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

// fatal is the reason behind the SQLSTATE of a FATAL message.
func fatal(code string) lockerr.LossReason {
	switch code {
	case "57P01": // admin_shutdown: pg_terminate_backend, or a shutdown of the server
		return lockerr.Terminated
	case "57P02", "57P03": // crash_shutdown, cannot_connect_now
		return lockerr.ServerRestarted
	case "57P05": // idle_session_timeout
		return lockerr.LeaseExpired
	}
	return lockerr.ConnectionLost
}
