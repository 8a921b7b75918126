package rowstmt

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// noWait is the limit of a wait that may not begin.
const noWait time.Duration = -1

const (
	// mostTries bounds the tries after the server's errors. Each means that another transaction got ahead.
	mostTries = 50
	// mostLooks bounds the tries after which a look contradicts the statement.
	mostLooks = 3
)

// UnsettledError reports that a statement found no row to lock or to write though there is one. Another try tells more; the
// error is what it means if it does not.
type UnsettledError struct{ Err error }

func (e *UnsettledError) Error() string { return e.Err.Error() }

// Unwrap returns what the error means if no other try tells more.
func (e *UnsettledError) Unwrap() error { return e.Err }

// Protect calls f, which sends statements about one table, and calls it again as long as another try may settle
// its error.
func Protect(ctx context.Context, q Querier, facts *Facts, wait time.Duration, f func() error) error {
	tx, inTx := q.(Tx)
	if inTx && (wait != 0 || facts.Moving) {
		s := savepoint{tx: tx, wait: wait, deadline: DeadlineAfter(wait)}
		return s.run(ctx, f)
	}
	var last error
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return nil
		}
		if last != nil && pgerr.Code(err) == pgerr.FailedTransaction {
			return last // a *pgx.Conn in a transaction
		}
		if !worthAnother(err, attempt, !inTx) || ctx.Err() != nil {
			return settled(err)
		}
		last = err
	}
}

// worthAnother reports whether a try that ended with err should be followed by another.
func worthAnother(err error, attempt int, undone bool) bool {
	var unsettled *UnsettledError
	if errors.As(err, &unsettled) {
		return attempt < mostLooks
	}
	return undone && attempt < mostTries && (pgerr.Code(err) == pgerr.SerializationFailure || pgerr.StalePlan(err))
}

// settled is the error without the mark that another try may tell more.
func settled(err error) error {
	var unsettled *UnsettledError
	if errors.As(err, &unsettled) {
		return unsettled.Err
	}
	return err
}

const (
	sqlSavepoint         = `SAVEPOINT pgbaton_wait`
	sqlReleaseSavepoint  = `RELEASE SAVEPOINT pgbaton_wait`
	sqlRollbackSavepoint = `ROLLBACK TO SAVEPOINT pgbaton_wait`

	// lock_timeout counts anew for each lock, so statement_timeout bounds the whole. It comes a little later
	// because the server mentions it first when both are due. A stricter one of the caller's stays. A limit
	// that is NULL stays, too.
	sqlLimitWait = `
WITH before AS MATERIALIZED (
    SELECT pg_catalog.current_setting('lock_timeout') AS lock,
           pg_catalog.current_setting('statement_timeout') AS statement)
SELECT lock, statement,
       pg_catalog.current_setting('transaction_isolation'),
       pg_catalog.set_config('lock_timeout', coalesce($1::pg_catalog.text, lock), true),
       pg_catalog.set_config('statement_timeout', CASE WHEN $2::pg_catalog.int8 IS NULL THEN statement ELSE least(
           $2::pg_catalog.int8,
           nullif(extract(epoch FROM statement::pg_catalog.interval) * 1000, 0)::pg_catalog.int8)::pg_catalog.text END, true)
FROM before`

	sqlRestoreWait = `
SELECT pg_catalog.set_config('lock_timeout', $1, true), pg_catalog.set_config('statement_timeout', $2, true)`
)

// savepoint runs a try inside of a transaction, with a limit of its own, so that the transaction outlives the failure.
type savepoint struct {
	tx       Tx
	wait     time.Duration // 0 for no limit
	deadline time.Time

	lockTimeout, statementTimeout, isolation string // as they were
}

// DeadlineAfter is when a wait is over. A wait that is too long for a date is over never.
func DeadlineAfter(wait time.Duration) time.Time {
	return time.Now().Add(min(wait, math.MaxInt64/2))
}

func (s *savepoint) run(ctx context.Context, f func() error) error {
	if err := runAll(ctx, s.tx, step{sql: sqlSavepoint}, s.limit(s.wait)); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return s.release(ctx)
		}
		if ctx.Err() != nil || !s.survives(err) {
			return settled(err)
		}
		again := worthAnother(err, attempt, true)
		left := s.wait
		if s.wait > 0 {
			left = time.Until(s.deadline)
			again = again && left > 0
		}
		if undoErr := s.undo(ctx, again, left); undoErr != nil {
			return fmt.Errorf("%w; after that: %w", settled(err), undoErr)
		}
		if !again {
			return settled(err)
		}
	}
}

// undo makes the transaction usable after a failed try, for another one or for what the caller does next.
func (s *savepoint) undo(ctx context.Context, again bool, left time.Duration) error {
	// One by one: in an aborted transaction nothing else can even be prepared.
	if err := Exec(ctx, s.tx, sqlRollbackSavepoint); err != nil {
		return err
	}
	if again {
		return runAll(ctx, s.tx, s.limit(left))
	}
	return Exec(ctx, s.tx, sqlReleaseSavepoint)
}

// survives reports whether the transaction should go on. A deadlock, and a conflict above read committed, are left as
// they are: the transaction is to be run again from its start.
func (s *savepoint) survives(err error) bool {
	switch pgerr.Code(err) {
	case pgerr.DeadlockDetected:
		return false
	case pgerr.SerializationFailure:
		return s.isolation == "read committed" || s.isolation == "read uncommitted"
	}
	return true
}

// release keeps what was done since the savepoint, and the settings from before.
func (s *savepoint) release(ctx context.Context) error {
	steps := []step{{sql: sqlReleaseSavepoint}}
	if s.wait != 0 {
		var ignored string
		steps = append(steps, step{sqlRestoreWait, []any{s.lockTimeout, s.statementTimeout}, []any{&ignored, &ignored}})
	}
	return runAll(ctx, s.tx, steps...)
}

// limit sets the limits for a try, and remembers what was set before.
func (s *savepoint) limit(wait time.Duration) step {
	var lock, statement any
	switch {
	case wait == noWait:
		lock = "1"
	case wait > 0:
		lock, statement = "0", nil
		if ms := Milliseconds(wait); ms != 0 {
			lock, statement = fmt.Sprint(ms), ms+5
		}
	}
	var ignored string
	dests := []any{&s.lockTimeout, &s.statementTimeout, &s.isolation, &ignored, &ignored}
	return step{sqlLimitWait, []any{lock, statement}, dests}
}

// Milliseconds is a time limit as the server takes it, rounded up. Zero is no limit: it is longer than the server can
// say, which is 24 days.
func Milliseconds(wait time.Duration) int64 {
	const most = math.MaxInt32 - 5
	ms := int64(wait / time.Millisecond)
	if wait%time.Millisecond > 0 {
		ms++
	}
	if ms > most {
		return 0
	}
	return max(ms, 1)
}
