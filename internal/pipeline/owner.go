package pipeline

import (
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Owner owns a pipeline of operations O. Its methods must not wait. Methods that are called with the
// pipeline's mutex say so; the others are called without any, by whichever goroutine reads or fails the pipeline.
type Owner[O any] interface {
	// Enqueue adds operations to the ones that wait to be sent, and returns all in the order in which they are to go. It is
	// called with the mutex.
	Enqueue(waiting, ops []O) []O
	// Fits returns how many of the waiting operations, at least the first, go into one round trip. The request should fit
	// into the socket's buffer of [WriteBuffer], so that a write does not wait for the network. It is called with the mutex.
	Fits(waiting []O) int
	// NewRound returns a round; there are seldom more than three. It is called with the mutex.
	NewRound() Round[O]
	// Repair sets right what the operations of failed round trips have left on the server. Nothing is under way meanwhile. When
	// it returns nil, the operations are refused, see [Round].
	Repair(r *Repairer[O], failed []O) error
	// Lost reports that the pipeline is gone, and which operations were not answered. It comes again for operations that are
	// submitted afterwards.
	Lost(unanswered []O, cause error)
	// Closed reports, once and after Lost, that the connection is closed.
	Closed()
}

// Round is the owner's half of one round trip after the other: it writes the statements and takes the rows.
type Round[O any] interface {
	// Encode writes the statements. One goroutine of the pipeline at a time does so.
	Encode(w *Writer, ops []O)
	// Check reports, after all rows, whether they are what they should be. An error fails the pipeline.
	Check() error
	// Complete answers operations whose round trip began at a moment, and makes the round ready for another one.
	// It may come after Lost, when the pipeline was failed while the answers were on their way.
	Complete(ops []O, sent time.Time)
	// Refuse reports that the server refused to run the operations, which were undone: with err, at the statement that was sent for
	// culprit; nil if it is not known.
	Refuse(ops []O, culprit Sink, err *pgconn.PgError)
}

// Sink takes the rows of one statement. The values are valid until it returns. An error fails the pipeline; a
// [lockerr.LossError] says in which way.
type Sink interface {
	Row(values [][]byte) error
}
