package sidecar

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Op is a statement to run on the session and, once answered, its result.
type Op struct {
	Statement *pipeline.Statement
	Params    [][]byte // as text; nil is NULL
	Alone     bool     // in a transaction of its own
	First     bool     // before all that are not First, and not in one transaction with them
	// Then, unless it is nil, is called once with the answer, on a goroutine that must not be kept waiting.
	Then func(op *Op)

	Sent time.Time  // when its round trip began
	Rows [][][]byte // as text; nil is NULL
	Err  error      // set when it did not run, or it is not known whether it did: then it matches Lost

	retries int
	asked   chan struct{} // of Query, which repeats by itself: closed when answered
}

// answer gives the answer to the one that wants it.
func (op *Op) answer() {
	if op.Then != nil {
		op.Then(op)
	}
	if op.asked != nil {
		close(op.asked)
	}
}

// rows takes the rows of an operation.
type rows Op

// Row implements [pipeline.Sink].
func (r *rows) Row(values [][]byte) error {
	r.Rows = append(r.Rows, pipeline.CopyRow(values))
	return nil
}

// Enqueue implements [pipeline.Owner]: First operations before the others.
func (s *Session) Enqueue(waiting, ops []*Op) []*Op {
	for _, op := range ops {
		place := len(waiting)
		if op.First && place > 0 && !waiting[place-1].First {
			place = slices.IndexFunc(waiting, func(other *Op) bool { return !other.First })
		}
		waiting = slices.Insert(waiting, place, op)
	}
	return waiting
}

const (
	maxBatch  = 1024     // operations in one round trip
	maxParams = 32 << 10 // bytes of parameters, so that a write does not wait for the network
)

// Fits implements [pipeline.Owner].
func (s *Session) Fits(waiting []*Op) int {
	size := 0
	for i, op := range waiting[:min(len(waiting), maxBatch)] {
		for _, param := range op.Params {
			size += len(param)
		}
		if op.Alone || size > maxParams || op.First != waiting[0].First {
			return max(i, 1)
		}
	}
	return min(len(waiting), maxBatch)
}

// NewRound implements [pipeline.Owner].
func (s *Session) NewRound() pipeline.Round[*Op] { return round{s} }

// Repair implements [pipeline.Owner]: the server has undone the transaction, and nothing is left of it.
func (s *Session) Repair(*pipeline.Repairer[*Op], []*Op) error { return nil }

// round is a transaction of operations, each with its statement.
type round struct{ session *Session }

// Encode implements [pipeline.Round].
func (r round) Encode(w *pipeline.Writer, ops []*Op) {
	for _, op := range ops {
		w.SendText(op.Statement, (*rows)(op), op.Params)
	}
}

// Check implements [pipeline.Round].
func (r round) Check() error { return nil }

// Complete implements [pipeline.Round].
func (r round) Complete(ops []*Op, sent time.Time) {
	for _, op := range ops {
		op.Sent = sent
		op.answer()
	}
}

// maxRetries is how often an operation runs again that failed through no fault of its own. There are engines on which every third
// statement may fail to serialize.
const maxRetries = 12

// Refuse implements [pipeline.Round]. The operations that another one has failed run again.
func (r round) Refuse(ops []*Op, culprit pipeline.Sink, err *pgconn.PgError) {
	refusal := pipeline.Refusal(err)
	guilty, _ := culprit.(*rows)
	for _, op := range ops {
		op.Rows, op.Err = nil, refusal
		if guilty != nil && guilty != (*rows)(op) {
			op.Err = fmt.Errorf("%w: another of its transaction failed: %w", pipeline.ErrRetry, refusal)
		}
		if op.asked != nil || !errors.Is(op.Err, pipeline.ErrRetry) || op.retries >= maxRetries {
			op.answer()
			continue
		}
		op.retries++
		op.Err = nil
		op.Alone = op.Alone || op.retries > 1 // not with others that fail
		r.session.Submit(op)
	}
}
