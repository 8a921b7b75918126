package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// errInterrupted ends a reader's turn early: its context has ended.
var errInterrupted = errors.New("reading interrupted")

// Help reads answers, for everybody, while the calling goroutine waits for its own: until done, or nothing
// is under way, or ctx ends. It returns at once when somebody else reads already. It never leaves an
// answer unread: the link's own reader goes on.
func (l *Link) Help(ctx context.Context, done func() bool) {
	if done() {
		l.Attend() // what this goroutine has sent may be somebody else's
		return
	}
	turn, ok := l.claim(false)
	if !ok {
		return
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { l.interrupt(turn) })
		defer stop()
	}
	for {
		if err := l.read(); err != nil || done() || ctx.Err() != nil || !l.due() {
			break
		}
	}
	l.yield()
}

// Attend makes sure that somebody reads the answers to what was submitted.
func (l *Link) Attend() {
	l.mu.Lock()
	needed := !l.reading && (len(l.flight) > 0 || len(l.failed) > 0)
	l.mu.Unlock()
	if needed {
		chans.Signal(l.wake)
	}
}

// claim makes the caller the reader, if there is none and there is something to read for it.
func (l *Link) claim(own bool) (uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reading || l.closed || (!own && (len(l.flight) == 0 || len(l.failed) > 0)) {
		return 0, false
	}
	l.reading = true
	l.attended = own
	l.turn++
	return l.turn, true
}

// yield ends the reader's turn.
func (l *Link) yield() {
	l.mu.Lock()
	l.reading, l.attended = false, false
	if l.interrupted {
		l.interrupted = false
		_ = l.conn.SetReadDeadline(time.Time{})
	}
	due := len(l.flight) > 0 || len(l.failed) > 0
	l.mu.Unlock()
	if due {
		chans.Signal(l.wake)
	}
}

// interrupt ends the turn of one reader, who may be blocked in a read.
func (l *Link) interrupt(turn uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reading && l.turn == turn {
		l.interrupted = true
		_ = l.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// due says whether a caller may go on reading.
func (l *Link) due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flight) > 0 && len(l.failed) == 0
}

// attend is the link's own reader: it takes over from callers, sets failed batches right, and stands by
// while the link is idle.
func (l *Link) attend() {
	defer l.workers.Done()
	for {
		select {
		case <-l.done:
			return
		case <-l.wake:
		}
		if _, ok := l.claim(true); !ok {
			chans.Signal(l.nudge) // a caller was faster; the keeper must look again when it has left
			continue
		}
		err := l.serve()
		l.yield()
		if err != nil && !errors.Is(err, errInterrupted) {
			return // the link has failed
		}
		chans.Signal(l.nudge)
	}
}

// serve reads until nothing is under way; with nothing under way it reads until something was.
func (l *Link) serve() error {
	for {
		l.mu.Lock()
		broken := len(l.failed) > 0 && len(l.flight) == 0
		l.mu.Unlock()
		var err error
		if broken {
			err = l.mend()
		} else {
			err = l.read()
		}
		if err != nil {
			return err
		}
		l.mu.Lock()
		due := len(l.flight) > 0 || len(l.failed) > 0
		l.mu.Unlock()
		if !due {
			return nil
		}
	}
}

// read reads up to the end of one batch and completes it. The caller is the reader. On an error other
// than errInterrupted the link has failed. After errInterrupted the next reader goes on where it was.
func (l *Link) read() error {
	for {
		msg, err := l.receive()
		if err != nil {
			return l.readError(err)
		}
		b := l.oldest()
		if b == nil {
			continue // a notice or a changed parameter, asked for by nobody
		}
		finished, err := b.take(msg)
		if err != nil {
			return l.readError(err)
		}
		if finished {
			return l.finish(b)
		}
	}
}

// receive reads a message. One that says that the session has ended is an error.
func (l *Link) receive() (pgproto3.BackendMessage, error) {
	msg, err := l.front.Receive()
	if err != nil {
		return nil, err
	}
	switch msg := msg.(type) {
	case *pgproto3.ErrorResponse:
		if isFatal(msg) {
			return nil, pgconn.ErrorResponseToPgError(msg)
		}
	case *pgproto3.NotificationResponse:
		if l.notify != nil {
			l.notify(msg.Payload)
		}
	}
	return msg, nil
}

// readError fails the link, unless the error is only the end of this reader's turn.
func (l *Link) readError(err error) error {
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		l.mu.Lock()
		interrupted := l.interrupted
		l.mu.Unlock()
		if interrupted {
			return errInterrupted
		}
	}
	l.Fail(lossOf(err))
	return err
}

func (l *Link) oldest() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.flight) == 0 {
		return nil
	}
	return l.flight[0]
}

// take digests one message of the batch's answer and says whether it was the last.
func (b *batch) take(msg pgproto3.BackendMessage) (bool, error) {
	switch msg := msg.(type) {
	case *pgproto3.DataRow:
		return false, b.row(msg.Values)
	case *pgproto3.CommandComplete:
		b.step++
	case *pgproto3.ErrorResponse:
		b.err = pgconn.ErrorResponseToPgError(msg)
	case *pgproto3.ReadyForQuery:
		if b.err == nil && (b.step != len(b.steps) || len(b.granted) != len(b.locks)) {
			return false, errProtocol
		}
		return true, nil
	}
	return false, nil
}

// finish takes an answered batch out of flight and tells the handler.
func (l *Link) finish(b *batch) error {
	now := time.Now()
	l.mu.Lock()
	if l.closed {
		defer l.mu.Unlock()
		return l.cause
	}
	l.flight = append(l.flight[:0], l.flight[1:]...)
	l.socket.asked.Store(int32(len(l.flight))) //nolint:gosec // at most maxFlight
	l.lastAnswer = now
	// An answer that lay unread while this process stood still proves nothing.
	fresh := now.Sub(b.sent) < l.trustSpan()
	if b.err != nil {
		l.failed = append(l.failed, b)
		l.mu.Unlock()
		if fresh { // also by an error the server shows that the session lives
			l.trust(b.sent)
		}
		return nil
	}
	l.mu.Unlock()

	if !fresh {
		return l.failWith(l.Expired(), b)
	}
	if b.standby {
		return l.failWith(&lockerr.LossError{Reason: lockerr.BecameStandby, Cause: lockerr.Standby}, b)
	}
	for _, draw := range b.draws {
		if draw <= l.drawn {
			return l.failWith(&lockerr.LossError{Reason: lockerr.TokensWentBack, Cause: fmt.Errorf(
				"the sequence pgbaton.token gave %d after %d: somebody has altered it", draw, l.drawn)}, b)
		}
		l.drawn = draw
	}
	l.trust(b.sent)
	l.pump()
	l.complete(b)
	return nil
}

// failWith fails the link while a batch is in nobody's list.
func (l *Link) failWith(cause error, b *batch) error {
	l.mu.Lock()
	closed, closedFor := l.closed, l.cause
	if !closed {
		l.failed = append(l.failed, b)
	}
	l.mu.Unlock()
	if closed { // another was faster, and did not see this batch
		markDone(b.ops)
		l.handler.Lost(b.ops, closedFor)
		return closedFor
	}
	l.Fail(cause)
	return cause
}

// trust extends the trust to what an answer to a message sent at a moment proves.
func (l *Link) trust(sent time.Time) {
	l.trusted.Store(int64(sent.Sub(l.born) + l.trustSpan()))
	if l.endangered.Load() {
		l.relieve()
	}
}

// complete gives the results to the operations and the operations to the handler.
func (l *Link) complete(b *batch) {
	for i, op := range b.locks {
		op.OK = b.granted[i]
	}
	for _, op := range b.ops {
		op.Sent = b.sent
		switch op.Kind {
		case Look:
			op.Count = b.count
		case UnlockAll, Call:
			op.OK = true
		case Try, TryPolite, TryAtGate, Unlock, Downgrade, Draw, Gate, Ping:
		}
	}
	markDone(b.ops)
	l.handler.Complete(b.ops, b.draws) // from here on the operations may be used anew
	b.reset()
	l.mu.Lock()
	l.spare = b
	l.mu.Unlock()
}

func isFatal(msg *pgproto3.ErrorResponse) bool {
	return msg.SeverityUnlocalized == "FATAL" || msg.SeverityUnlocalized == "PANIC"
}
