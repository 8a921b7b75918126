package pipeline

import (
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// batch is one round trip: what it carries, and how far its answer has come.
type batch[O any] struct {
	ops    []O
	round  Round[O]
	asides []aside
	sent   time.Time

	sinks    []Sink // of the statements that were sent, in order
	answered int    // statements
	echo     echo
	parsed   []*Statement
	err      *pgconn.PgError
}

// aside is a statement without parameters that rides with the next round trip.
type aside struct {
	statement *Statement
	sink      Sink
	then      func(err error) // told how it ended; nil if nobody wants to know
}

func conclude(asides []aside, err error) {
	for _, a := range asides {
		if a.then != nil {
			a.then(err)
		}
	}
}

// reset makes a batch ready for another round trip.
func (b *batch[O]) reset() {
	clear(b.ops)
	clear(b.asides)
	clear(b.sinks)
	clear(b.parsed)
	*b = batch[O]{ops: b.ops[:0], round: b.round, asides: b.asides[:0], sinks: b.sinks[:0], parsed: b.parsed[:0]}
}

// ErrProtocol means that the server has not answered what it was asked.
var ErrProtocol = errors.New("the server's answer does not fit the statement sent")

// accept digests one message of the batch's answer and reports whether it was the last.
func (b *batch[O]) accept(msg pgproto3.BackendMessage) (bool, error) {
	switch msg := msg.(type) {
	case *pgproto3.DataRow:
		if b.answered >= len(b.sinks) {
			return false, ErrProtocol
		}
		return false, b.sinks[b.answered].Row(msg.Values)
	case *pgproto3.CommandComplete:
		b.answered++
	case *pgproto3.ErrorResponse:
		b.err = pgconn.ErrorResponseToPgError(msg)
	case *pgproto3.ReadyForQuery:
		if !b.echo.heard() && (b.err == nil || !pgerr.Passing(b.err)) { // a foreign answer of that kind shows itself by the next one
			return false, session.ErrForeign
		}
		if b.err != nil {
			return true, nil
		}
		if b.answered != len(b.sinks) {
			return false, ErrProtocol
		}
		if len(b.ops) > 0 {
			return true, b.round.Check()
		}
		return true, nil
	}
	return false, nil
}

// culprit returns the sink of the statement that failed.
func (b *batch[O]) culprit() Sink {
	if b.answered < len(b.sinks) {
		return b.sinks[b.answered]
	}
	return nil
}

// write puts the batch into the frontend's buffer.
func (b *batch[O]) write(w *Writer) {
	w.sinks, w.parsed = b.sinks[:0], b.parsed[:0]
	if w.relayed {
		b.echo.write(w)
	}
	if len(b.ops) > 0 {
		b.round.Encode(w, b.ops)
	}
	for _, a := range b.asides {
		w.Send(a.statement, a.sink)
	}
	w.front.SendSync(&pgproto3.Sync{})
	b.sinks, b.parsed = w.sinks, w.parsed
}

var (
	stmtPing = Statement{Name: "pgbaton_ping", SQL: "SELECT pg_is_in_recovery()"}
	// stmtPortablePing asks for nothing: other engines have no such function.
	stmtPortablePing = Statement{Name: "pgbaton_ping", SQL: "SELECT false"}
)

// pulse takes the answer to a ping.
type pulse struct{}

// Row fails a pipeline whose server has become a standby.
func (pulse) Row(values [][]byte) error {
	switch {
	case len(values) != 1 || len(values[0]) != 1:
		return ErrProtocol
	case values[0][0] != 0:
		return &lockerr.LossError{Reason: lockerr.BecameStandby, Cause: lockerr.Standby}
	}
	return nil
}

// deaf takes rows that nobody wants.
type deaf struct{}

// Row takes anything.
func (deaf) Row([][]byte) error { return nil }
