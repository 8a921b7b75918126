package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// LockStrength is how a row is locked, in PostgreSQL's words. Each conflicts with [ForUpdate].
type LockStrength uint8

const (
	// ForUpdate lets nobody else lock, change or delete the row, nor add a row that refers to it.
	ForUpdate LockStrength = iota
	// ForNoKeyUpdate is ForUpdate, but rows that refer to it by a foreign key can be added meanwhile.
	ForNoKeyUpdate
	// ForShare lets others share the row and nobody change it.
	ForShare
	// ForKeyShare only keeps the row's existence and its key.
	ForKeyShare
)

func (s LockStrength) clause() (string, error) {
	switch s {
	case ForUpdate:
		return "FOR UPDATE", nil
	case ForNoKeyUpdate:
		return "FOR NO KEY UPDATE", nil
	case ForShare:
		return "FOR SHARE", nil
	case ForKeyShare:
		return "FOR KEY SHARE", nil
	}
	return "", fmt.Errorf("lock strength %d is none of ForUpdate to ForKeyShare", s)
}

// NoWait as [RowOpts.Wait] does not wait for a row that is taken.
const NoWait time.Duration = -1

// RowOpts are the settings of [LockRow] and [LockRows]. Nil means the defaults.
type RowOpts struct {
	// Strength is how the row is locked. Defaults to ForUpdate.
	Strength LockStrength

	// Wait is how long to wait for rows that are taken, in all, in steps of 1 ms; NoWait does not wait. Zero waits
	// until the context ends (or as long as the session's lock_timeout and statement_timeout let it), but then
	// pgx closes the connection and the transaction is over. So give a Wait if it is to go on.
	// Defaults to zero.
	Wait time.Duration

	// Column is the column that is read whole into T, for a T that is not a struct of columns.
	// Defaults to none: T is a struct.
	Column string
}

// LockRow locks the row that has the key until the transaction ends, and returns it.
//
// On success the row is locked, and is as the last transaction to change it left it. T is a struct whose
// exported fields are columns by pgx's rules (the db tag, or else the field's name in snake case), or any type
// if [RowOpts.Column] is given, or struct{} for the lock alone; other columns of the table are not read.
//
// On failure T is zero. [ErrNotFound]: no row has the key, and nothing is locked. [ErrNotAcquired]: the row is
// taken, nothing is locked, and if opts.Wait was given the transaction is as usable as before, its settings and
// savepoints too. After any other error of the server the transaction is aborted, as always in PostgreSQL:
// [ErrDeadlock], or [ErrConflict] if the row was changed since a transaction above read committed began. A row that
// does not fit T, and several rows with the key, are errors that leave what was found locked.
//
// The table is a pgx.Identifier, {"accounts"} or {"bank", "accounts"}: a single string could not tell the table
// "a.b" from the table b of the schema a. Each part is quoted as it is.
//
// How it works: SELECT … FOR UPDATE. With NoWait, SKIP LOCKED, and when that finds nothing a look whether
// the row exists and a second try, because SKIP LOCKED can miss a row that has just become free. With a Wait, the
// SKIP LOCKED first; only if that finds nothing, a savepoint in which lock_timeout and statement_timeout are set
// and restored. Such a wait that fails writes a line into the server's log.
func LockRow[T any](ctx context.Context, tx Tx, table pgx.Identifier, key Values, opts *RowOpts) (T, error) {
	var zero T
	lock, err := newRowLock[T]("lock row of", table, []Values{key}, opts)
	if err != nil {
		return zero, err
	}
	var rows []T
	switch lock.wait {
	case 0:
		rows, err = lockRows[T](ctx, tx, lock, waiting)
	case NoWait:
		rows, err = tryLockRow[T](ctx, tx, lock)
	default:
		rows, err = lockRows[T](ctx, tx, lock, skipping)
		if err == nil && len(rows) == 0 {
			rows, err = lockRowsWithin[T](ctx, tx, lock)
		}
	}
	switch {
	case err != nil:
		return zero, err
	case len(rows) == 0:
		return zero, lock.fail(lockerr.NotFound)
	case len(rows) > 1:
		return zero, fmt.Errorf("lock row of %s: %d rows have the key", lock.table, len(rows))
	}
	return rows[0], nil
}

// LockRows locks the rows that have the keys until the transaction ends, and returns them in the order of
// their keys. All keys must have the same columns; a key given twice counts once.
//
// The rows are locked in the order of their keys, whatever the order in which they are given, so that callers
// of LockRows cannot deadlock on one table. (The order is that of the columns sorted by name, and within each
// the server's: a transaction that changes a key meanwhile can still get in the way.)
//
// On failure the result is nil, and errors are those of [LockRow]: ErrNotFound if any row is missing, ErrNotAcquired
// if any is taken. With a Wait nothing is locked then; with NoWait, or if a row was missing, those that were free stay
// locked until the transaction, or a savepoint of the caller's, is rolled back.
func LockRows[T any](ctx context.Context, tx Tx, table pgx.Identifier, keys []Values, opts *RowOpts) ([]T, error) {
	lock, err := newRowLock[T]("lock rows of", table, keys, opts)
	if err != nil {
		return nil, err
	}
	var rows []T
	switch lock.wait {
	case 0:
		rows, err = lockRows[T](ctx, tx, lock, waiting)
	case NoWait:
		rows, err = lockRows[T](ctx, tx, lock, skipping)
	default: // not skipping first, which would lock out of order
		rows, err = lockRowsWithin[T](ctx, tx, lock)
	}
	if err != nil {
		return nil, err
	}
	if len(rows) >= len(keys) {
		return rows, nil
	}
	// Fewer rows than keys: some are missing or taken, or a key was given twice.
	existing, err := lock.countExisting(ctx, tx, keys)
	if err != nil {
		return nil, err
	}
	if len(rows) == existing {
		return rows, nil
	}
	// All exist, so look again: SKIP LOCKED can miss a row that has just become free.
	taken := waiting
	if lock.wait != 0 {
		taken = skipping
	}
	rows, err = lockRows[T](ctx, tx, lock, taken)
	if err == nil && len(rows) < existing {
		return nil, lock.fail(lockerr.NotAcquired)
	}
	return rows, err
}

// rowLock is the statement that locks some rows by key, in the forms in which it may be needed.
type rowLock struct {
	statement // args and table; the text is put together when it runs

	record   *record.Record
	columns  []string // of the key
	where    string
	order    string // the ORDER BY clause, if several rows are locked
	strength string
	wait     time.Duration
}

func newRowLock[T any](verb string, table pgx.Identifier, keys []Values, opts *RowOpts) (*rowLock, error) {
	if opts == nil {
		opts = &RowOpts{}
	}
	lock := &rowLock{statement: statement{verb: verb}, wait: opts.Wait}
	wrap := func(err error) error { return fmt.Errorf("pgbaton: %s %q: %w", verb, []string(table), err) }
	var err error
	if lock.table, err = sqltext.Table(table); err != nil {
		return nil, wrap(err)
	}
	if opts.Wait < 0 && opts.Wait != NoWait {
		return nil, wrap(fmt.Errorf("RowOpts.Wait is %v: give NoWait, zero or more", opts.Wait))
	}
	if lock.record, err = recordOf[T](opts.Column); err != nil {
		return nil, wrap(err)
	}
	if lock.strength, err = opts.Strength.clause(); err != nil {
		return nil, wrap(err)
	}
	if len(keys) == 0 {
		return nil, wrap(errors.New("no keys"))
	}
	if lock.columns, err = sqltext.KeyColumns(keys[0]); err != nil {
		return nil, wrap(err)
	}
	var args sqltext.Args
	if len(keys) == 1 {
		lock.where, err = sqltext.KeyEquals(&args, lock.columns, keys[0])
	} else {
		lock.where, err = sqltext.KeyIn(&args, lock.columns, keys)
		lock.order = "\nORDER BY " + sqltext.QuoteList(lock.columns)
	}
	if err != nil {
		return nil, wrap(err)
	}
	lock.args = args.Values()
	return lock, nil
}

// How lockRows treats rows that are taken.
const (
	waiting  = ""
	skipping = " SKIP LOCKED"
)

func lockRows[T any](ctx context.Context, tx Tx, lock *rowLock, taken string) ([]T, error) {
	s := lock.statement
	s.text = "SELECT " + lock.record.Select +
		"\nFROM " + lock.table +
		"\nWHERE " + lock.where +
		lock.order +
		"\n" + lock.strength + taken
	rows, err := collect[T](ctx, tx, lock.record, &s)
	if err != nil {
		return nil, s.failWait(ctx, err)
	}
	return rows, nil
}

// tryLockRow returns no row if none exists, and ErrNotAcquired if it is taken.
func tryLockRow[T any](ctx context.Context, tx Tx, lock *rowLock) ([]T, error) {
	rows, err := lockRows[T](ctx, tx, lock, skipping)
	if err != nil || len(rows) > 0 {
		return rows, err
	}
	exists := false
	s := lock.statement
	s.text = "SELECT EXISTS (SELECT FROM " + lock.table + "\nWHERE " + lock.where + ")"
	if _, err = queryRow(ctx, tx, []any{&exists}, s.text, s.args...); err != nil {
		return nil, s.failWait(ctx, err)
	}
	if !exists {
		return nil, nil
	}
	rows, err = lockRows[T](ctx, tx, lock, skipping)
	if err == nil && len(rows) == 0 {
		return nil, lock.fail(lockerr.NotAcquired)
	}
	return rows, err
}

// countExisting counts the rows that have one of the keys, and returns ErrNotFound if some key has none.
func (l *rowLock) countExisting(ctx context.Context, tx Tx, keys []Values) (int, error) {
	s := l.statement
	count := 0
	s.text = "SELECT count(*)\nFROM " + l.table + "\nWHERE " + l.where
	if _, err := queryRow(ctx, tx, []any{&count}, s.text, s.args...); err != nil {
		return 0, s.failWait(ctx, err)
	}
	if count >= len(keys) {
		return count, nil
	}
	for i, key := range keys {
		var args sqltext.Args
		where, err := sqltext.KeyEquals(&args, l.columns, key)
		if err != nil {
			return 0, s.fail(err)
		}
		exists := false
		s.text, s.args = "SELECT EXISTS (SELECT FROM "+l.table+"\nWHERE "+where+")", args.Values()
		if _, err := queryRow(ctx, tx, []any{&exists}, s.text, s.args...); err != nil {
			return 0, s.failWait(ctx, err)
		}
		if !exists {
			return 0, fmt.Errorf("lock rows of %s: key %d of %d: %w", l.table, i+1, len(keys), lockerr.NotFound)
		}
	}
	return count, nil
}

const (
	sqlSavepoint         = `SAVEPOINT pgbaton_wait`
	sqlReleaseSavepoint  = `RELEASE SAVEPOINT pgbaton_wait`
	sqlRollbackSavepoint = `ROLLBACK TO SAVEPOINT pgbaton_wait`

	// lock_timeout counts anew for each row, so statement_timeout bounds the whole. It comes a little later
	// because the server mentions it first when both are due. A stricter one of the caller's stays.
	sqlLimitWait = `
WITH before AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') AS statement)
SELECT lock, statement,
       set_config('lock_timeout', $1::bigint::text, true),
       set_config('statement_timeout', least(
           $1::bigint + 5,
           nullif(extract(epoch FROM statement::interval) * 1000, 0)::bigint)::text, true)
FROM before`

	sqlRestoreWait = `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true)`
)

// lockRowsWithin waits for at most lock.wait. It works in a savepoint, because a wait that times out
// aborts what it is part of.
func lockRowsWithin[T any](ctx context.Context, tx Tx, lock *rowLock) ([]T, error) {
	fail := func(err error) ([]T, error) { return nil, lock.failWait(ctx, err) }
	if err := run(ctx, tx, sqlSavepoint); err != nil {
		return fail(err)
	}
	limit := (lock.wait + time.Millisecond - 1) / time.Millisecond
	var lockTimeout, statementTimeout, ignored string
	dests := []any{&lockTimeout, &statementTimeout, &ignored, &ignored}
	if _, err := queryRow(ctx, tx, dests, sqlLimitWait, int64(limit)); err != nil {
		return fail(err)
	}
	start := time.Now()
	rows, err := lockRows[T](ctx, tx, lock, waiting)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		if rollbackErr := leaveSavepoint(ctx, tx, pgerr.Code(err)); rollbackErr != nil {
			return fail(errors.Join(err, rollbackErr))
		}
		if pgerr.Code(err) == pgerr.QueryCanceled && time.Since(start) >= lock.wait {
			err = fmt.Errorf("%w: %w", lockerr.NotAcquired, err)
		}
		return nil, err
	}
	if err := run(ctx, tx, sqlRestoreWait, lockTimeout, statementTimeout); err != nil {
		return fail(err)
	}
	if err := run(ctx, tx, sqlReleaseSavepoint); err != nil {
		return fail(err)
	}
	return rows, nil
}

// leaveSavepoint makes the transaction usable again after a statement failed in the savepoint. A conflict
// or a deadlock is left as it is: the transaction is to be run again from its start.
func leaveSavepoint(ctx context.Context, tx Tx, code string) error {
	if code == pgerr.SerializationFailure || code == pgerr.DeadlockDetected {
		return nil
	}
	if err := run(ctx, tx, sqlRollbackSavepoint); err != nil {
		return err
	}
	return run(ctx, tx, sqlReleaseSavepoint)
}
