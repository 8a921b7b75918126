package pipeline

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/session"
)

// errInterrupted ends a reader's turn early: its context has ended.
var errInterrupted = errors.New("reading interrupted")

// Help reads answers, for everybody, while the calling goroutine waits for its own: until done, or nothing
// is under way, or ctx ends. It returns at once when somebody else reads already. It never leaves an
// answer unread: the pipeline's own reader goes on.
func (p *Pipeline[O]) Help(ctx context.Context, done func() bool) {
	if done() {
		p.Attend() // what this goroutine has sent may be somebody else's
		return
	}
	turn, ok := p.startReading(false)
	if !ok {
		return
	}
	if ctx.Done() != nil {
		stop := context.AfterFunc(ctx, func() { p.interrupt(turn) })
		defer stop()
	}
	for {
		if err := p.read(); err != nil || done() || ctx.Err() != nil || !p.due() {
			break
		}
	}
	p.stopReading()
}

// Attend makes sure that somebody reads the answers to what was submitted.
func (p *Pipeline[O]) Attend() {
	p.mu.Lock()
	needed := !p.reading && (len(p.flight) > 0 || len(p.failed) > 0)
	p.mu.Unlock()
	if needed {
		chans.Signal(p.wake)
	}
}

// startReading makes the caller the reader, if there is none and there is something to read for it.
func (p *Pipeline[O]) startReading(own bool) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading || p.closed || (!own && (len(p.flight) == 0 || len(p.failed) > 0)) {
		return 0, false
	}
	p.reading = true
	p.attended = own
	p.turn++
	return p.turn, true
}

// stopReading ends the reader's turn.
func (p *Pipeline[O]) stopReading() {
	p.mu.Lock()
	p.reading, p.attended = false, false
	if p.interrupted {
		p.interrupted = false
		_ = p.conn.SetReadDeadline(time.Time{})
	}
	due := len(p.flight) > 0 || len(p.failed) > 0
	p.mu.Unlock()
	if due {
		chans.Signal(p.wake)
	}
}

// interrupt ends the turn of one reader, which may be blocked in a read.
func (p *Pipeline[O]) interrupt(turn uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading && p.turn == turn {
		p.interrupted = true
		_ = p.conn.SetReadDeadline(time.Unix(1, 0))
	}
}

// due reports whether a caller may go on reading.
func (p *Pipeline[O]) due() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.flight) > 0 && len(p.failed) == 0
}

// attend is the pipeline's own reader: it takes over from callers, sets failed batches right, and reads
// while the pipeline is idle.
func (p *Pipeline[O]) attend() {
	defer p.cfg.Workers.Done()
	for {
		select {
		case <-p.done:
			return
		case <-p.wake:
		}
		if _, ok := p.startReading(true); !ok {
			chans.Signal(p.nudge) // a caller was faster; the keeper must look again when it has left
			continue
		}
		err := p.readAll()
		p.stopReading()
		if err != nil && !errors.Is(err, errInterrupted) {
			return // the pipeline has failed
		}
		chans.Signal(p.nudge)
	}
}

// readAll reads until nothing is under way; with nothing under way it reads until something was.
func (p *Pipeline[O]) readAll() error {
	for {
		p.mu.Lock()
		broken := len(p.failed) > 0 && len(p.flight) == 0
		p.mu.Unlock()
		var err error
		if broken {
			err = p.mend()
		} else {
			err = p.read()
		}
		if err != nil {
			return err
		}
		p.mu.Lock()
		due := len(p.flight) > 0 || len(p.failed) > 0
		p.mu.Unlock()
		if !due {
			return nil
		}
	}
}

// read reads up to the end of one batch and completes it. The caller is the reader. On an error other
// than errInterrupted the pipeline has failed. After errInterrupted the next reader goes on where it was.
func (p *Pipeline[O]) read() error {
	for {
		msg, err := p.receive()
		if err != nil {
			return p.readError(err)
		}
		b := p.oldest()
		if b == nil {
			continue // a notice or a changed parameter, asked for by nobody
		}
		finished, err := b.accept(msg)
		if err != nil {
			return p.readError(err)
		}
		if finished {
			return p.finish(b)
		}
	}
}

// receive reads a message. One that says that the session has ended is an error.
func (p *Pipeline[O]) receive() (pgproto3.BackendMessage, error) {
	msg, err := p.front.Receive()
	if err != nil {
		return nil, err
	}
	switch msg := msg.(type) {
	case *pgproto3.ErrorResponse:
		if isFatal(msg) {
			return nil, pgconn.ErrorResponseToPgError(msg)
		}
	case *pgproto3.NotificationResponse:
		if p.cfg.Notified != nil {
			p.cfg.Notified(msg.Payload)
		}
	}
	return msg, nil
}

// readError fails the pipeline, unless the error is only the end of this reader's turn.
func (p *Pipeline[O]) readError(err error) error {
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		p.mu.Lock()
		interrupted := p.interrupted
		p.mu.Unlock()
		if interrupted {
			return errInterrupted
		}
	}
	if errors.Is(err, session.ErrForeign) {
		p.spoil()
	}
	p.Fail(lossOf(err))
	return err
}

func (p *Pipeline[O]) oldest() *batch[O] {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.flight) == 0 {
		return nil
	}
	return p.flight[0]
}

// finish takes an answered batch out of flight and tells the owner.
func (p *Pipeline[O]) finish(b *batch[O]) error {
	now := time.Now()
	// An answer that lay unread while this process was paused proves nothing.
	if now.Sub(b.sent) >= p.trustSpan() {
		return p.readError(p.Expired())
	}
	p.mu.Lock()
	if p.closed {
		defer p.mu.Unlock()
		return p.cause
	}
	p.flight = append(p.flight[:0], p.flight[1:]...)
	p.socket.asked.Store(int32(len(p.flight))) //nolint:gosec // at most maxFlight
	p.lastAnswer = now
	failed := b.err != nil
	if failed {
		p.failed = append(p.failed, b)
	}
	p.mu.Unlock()
	p.trust(b.sent) // also by an error the server shows that the session lives
	if failed {
		return nil
	}
	p.pump()
	if len(b.ops) > 0 {
		b.round.Complete(b.ops, b.sent) // from here on the operations may be used anew
	}
	conclude(b.asides, nil)
	b.reset()
	p.mu.Lock()
	p.spare = append(p.spare, b)
	p.mu.Unlock()
	return nil
}

func isFatal(msg *pgproto3.ErrorResponse) bool {
	return msg.SeverityUnlocalized == "FATAL" || msg.SeverityUnlocalized == "PANIC"
}
