package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// A statement on a row can fail for reasons that have nothing to do with the row's contents, and that another try
// settles. In the caller's transaction such a try needs a savepoint, because an error aborts what it is part of.
//
//   - A time limit (RowOpts.Wait, ClaimOpts.Wait): set for the statement alone, in a savepoint. It is set before
//     the statement is sent, because the lock on the table is waited for while the statement is still parsed.
//   - A row that was moved to another partition while it was waited for, or since the statement began: SQLSTATE 40001
//     even in read committed. The statement is sent again and finds the row where it is now. Tables where this can
//     happen (see tableFacts) get the savepoint without being asked.
//   - A plan that was made before the table was altered: pgx drops it, and the next try makes another.
//   - A row that was replaced by another of the same key: unsettled, by a look after the statement.
//
// Outside of a transaction each statement is one of its own, and is sent again without more ado.

const (
	// mostTries bounds the tries after the server's errors. Each means that another transaction got ahead.
	mostTries = 50
	// mostLooks bounds the tries after which a look contradicts the statement.
	mostLooks = 3
)

// unsettledError says that a statement found no row to lock or to write though there is one. Another try tells more; the
// error is what it means if it does not.
type unsettledError struct{ error }

func (e *unsettledError) Unwrap() error { return e.error }

// protect calls f, which sends statements about one table, and calls it again as long as another try may settle
// its error.
func protect(ctx context.Context, q Querier, facts *tableFacts, wait time.Duration, f func() error) error {
	tx, inTx := q.(Tx)
	if inTx && (wait != 0 || facts.moving) {
		s := savepoint{tx: tx, wait: wait, deadline: deadlineAfter(wait)}
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

// worthAnother says whether a try that ended with err should be followed by another.
func worthAnother(err error, attempt int, undone bool) bool {
	var unsettled *unsettledError
	if errors.As(err, &unsettled) {
		return attempt < mostLooks
	}
	return undone && attempt < mostTries && (pgerr.Code(err) == pgerr.SerializationFailure || pgerr.StalePlan(err))
}

// settled is the error without the mark that another try may tell more.
func settled(err error) error {
	var unsettled *unsettledError
	if errors.As(err, &unsettled) {
		return unsettled.error
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

// deadlineAfter is when a wait is over. A wait that is too long for a date is over never.
func deadlineAfter(wait time.Duration) time.Time {
	return time.Now().Add(min(wait, math.MaxInt64/2))
}

func (s *savepoint) run(ctx context.Context, f func() error) error {
	if err := runAll(ctx, s.tx, step{sql: sqlSavepoint}, s.limit(s.wait)); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			return s.leave(ctx)
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
	if err := run(ctx, s.tx, sqlRollbackSavepoint); err != nil {
		return err
	}
	if again {
		return runAll(ctx, s.tx, s.limit(left))
	}
	return run(ctx, s.tx, sqlReleaseSavepoint)
}

// survives says whether the transaction should go on. A deadlock, and a conflict above read committed, are left as
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

// leave keeps what was done since the savepoint, and the settings from before.
func (s *savepoint) leave(ctx context.Context) error {
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
	case wait == NoWait:
		lock = "1"
	case wait > 0:
		lock, statement = "0", nil
		if ms := milliseconds(wait); ms != 0 {
			lock, statement = fmt.Sprint(ms), ms+5
		}
	}
	var ignored string
	dests := []any{&s.lockTimeout, &s.statementTimeout, &s.isolation, &ignored, &ignored}
	return step{sqlLimitWait, []any{lock, statement}, dests}
}

// milliseconds is a time limit as the server takes it, rounded up. Zero is no limit: it is longer than the server can
// say, which is 24 days.
func milliseconds(wait time.Duration) int64 {
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

// step is a statement whose only row, if it has dests, goes there.
type step struct {
	sql   string
	args  []any
	dests []any
}

// runAll runs the steps one after the other: in one round trip where the handle can do that, as a pgx.Tx.
func runAll(ctx context.Context, q Querier, steps ...step) error {
	batcher, ok := q.(interface {
		SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	})
	if !ok || len(steps) == 1 {
		for _, s := range steps {
			if err := s.run(ctx, q); err != nil {
				return err
			}
		}
		return nil
	}
	var batch pgx.Batch
	for _, s := range steps {
		batch.Queue(s.sql, s.args...)
	}
	results := batcher.SendBatch(ctx, &batch)
	var err error
	for _, s := range steps {
		if err == nil && len(s.dests) > 0 {
			err = results.QueryRow().Scan(s.dests...)
		} else if err == nil {
			_, err = results.Exec()
		}
	}
	if closeErr := results.Close(); err == nil {
		err = closeErr
	}
	return err
}

func (s step) run(ctx context.Context, q Querier) error {
	if len(s.dests) == 0 {
		return run(ctx, q, s.sql, s.args...)
	}
	_, err := queryRow(ctx, q, s.dests, s.sql, s.args...)
	return err
}
