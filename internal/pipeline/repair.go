package pipeline

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// ErrRetry marks an operation that was cut off from outside and may simply be submitted again.
var ErrRetry = errors.New("operation cancelled on the server")

// Refusal translates the server's error for the operations that it ended.
func Refusal(err *pgconn.PgError) error {
	switch pgerr.Code(err) {
	case pgerr.OutOfMemory: // with this hint it is the lock table
		return fmt.Errorf("%w: the server's lock table is full: raise max_locks_per_transaction: %w", lockerr.TooManyLocks, err)
	case pgerr.SerializationFailure, pgerr.DeadlockDetected, // the transaction was undone, and may succeed when it runs again
		pgerr.QueryCanceled,    // by an operator: nothing in the library cancels a statement of a pipeline
		pgerr.UnknownStatement: // the round trip before was to prepare it, and failed
		return fmt.Errorf("%w: %w", ErrRetry, err)
	case pgerr.ReadOnly:
		return fmt.Errorf("%w: connect to the primary (target_session_attrs=read-write): %w", lockerr.Standby, err)
	}
	return pgerr.Schema(err)
}

// Repairer runs statements while nothing else is under way.
type Repairer[O any] struct{ p *Pipeline[O] }

// Query runs a statement without parameters and returns its rows as text. That it is answered shows that the session lives.
func (r *Repairer[O]) Query(sql string) ([][][]byte, error) {
	p, sent := r.p, time.Now()
	p.front.SendQuery(&pgproto3.Query{String: sql})
	if err := p.front.Flush(); err != nil {
		return nil, err
	}
	var rows [][][]byte
	var failure error
	for {
		msg, err := p.receive()
		if err != nil {
			return nil, err
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			rows = append(rows, CopyRow(msg.Values))
		case *pgproto3.ErrorResponse:
			failure = pgconn.ErrorResponseToPgError(msg)
		case *pgproto3.ReadyForQuery:
			if failure == nil {
				p.trust(sent)
			}
			return rows, failure
		}
	}
}

// Run runs operations in one round trip. Their owner is told nothing of it.
func (r *Repairer[O]) Run(ops []O) error {
	p := r.p
	b := &batch[O]{round: p.owner.NewRound(), ops: ops}
	b.write(&p.writer)
	if err := p.front.Flush(); err != nil {
		return err
	}
	for {
		msg, err := p.receive()
		if err != nil {
			return err
		}
		switch finished, err := b.accept(msg); {
		case err != nil:
			return err
		case finished && b.err != nil:
			p.writer.forget(b.parsed)
			return b.err
		case finished:
			return nil
		}
	}
}

// mend sets right what failed batches left, and answers their operations. The caller is the pipeline's own reader and
// nothing is in flight.
//
// An operator who cancels again and again may hit the repair as well, which then starts anew, as long as the pipeline can
// be trusted.
func (p *Pipeline[O]) mend() error {
	failed, release := p.seize()
	defer release()
	var ops []O
	for _, b := range failed {
		ops = append(ops, b.ops...)
		p.writer.forget(b.parsed)
	}
	for {
		err := p.owner.Repair(&Repairer[O]{p}, ops)
		if err == nil {
			break
		}
		if pgerr.Code(err) != pgerr.QueryCanceled || !p.Trusted(time.Now()) {
			return p.readError(err)
		}
	}
	p.mu.Lock()
	if p.closed {
		defer p.mu.Unlock()
		return p.cause
	}
	p.failed = nil
	p.mu.Unlock()
	release()
	for _, b := range failed {
		if len(b.ops) > 0 {
			b.round.Refuse(b.ops, b.culprit(), b.err)
		}
		conclude(b.asides, Refusal(b.err))
	}
	p.pump()
	return nil
}

// seize waits until nobody is sending any longer (the answer to a batch can be there before its sender has
// returned from the write), and keeps it so until release, which may be called twice.
func (p *Pipeline[O]) seize() (failed []*batch[O], release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.sending {
		p.sent.Wait()
	}
	p.sending = true
	return p.failed, sync.OnceFunc(func() {
		p.mu.Lock()
		p.sending = false
		p.mu.Unlock()
	})
}

// CopyRow copies what is only valid until the next message.
func CopyRow(values [][]byte) [][]byte {
	row := make([][]byte, len(values))
	for i, value := range values {
		row[i] = bytes.Clone(value)
	}
	return row
}
