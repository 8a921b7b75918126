package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/rowstmt"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// strengthClause returns the clause of a strength that is given in PostgreSQL's words.
func strengthClause(strength string) (string, error) {
	for _, clause := range []string{"FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE", "FOR KEY SHARE"} {
		if strength == clause || strength == "" {
			return clause, nil
		}
	}
	return "", fmt.Errorf("strength %q is none of FOR UPDATE, FOR NO KEY UPDATE, FOR SHARE and FOR KEY SHARE", strength)
}

// NoWait as [LockOpts.Wait], [RowOpts.Wait] or [ClaimOpts.Wait] does not wait for what is taken.
const NoWait time.Duration = -1

// RowOpts are the settings of [LockRow] and [LockRows]. Nil means the defaults.
type RowOpts struct {
	// Strength is how the row is locked, in PostgreSQL's words:
	//
	//	FOR UPDATE         nobody else locks, changes or deletes the row, nor adds one that refers to it
	//	FOR NO KEY UPDATE  the same, but rows that refer to it by a foreign key can be added
	//	FOR SHARE          others may share the row, and nobody changes it
	//	FOR KEY SHARE      only the row's existence and its key are kept
	//
	// Defaults to FOR UPDATE.
	Strength string

	// Wait bounds the whole call, in steps of 1 ms, whether rows are taken or the table itself is locked, as by
	// ALTER TABLE; NoWait waits for neither. Longer than 24 days is no limit. Zero waits until the context ends (or
	// as long as the session's lock_timeout and statement_timeout let it), but then pgx closes the connection and
	// the transaction is over. So give a Wait if it is to go on. Defaults to zero.
	//
	// A Wait costs two round trips more than none, and four with database/sql: the limit must be set before.
	Wait time.Duration

	// Column is the column that is read whole into T, for a T that is not a struct of columns.
	// Defaults to none: T is a struct.
	Column string
}

// LockRow locks the row that has the key until the transaction ends, and returns it.
//
// On success the row is locked, is the only one with the key, and is as the last transaction to change it left it. T is
// a struct whose exported fields are columns by pgx's rules (the db tag, or else the column that is called as the
// field, whatever the case and the underscores), or any type if [RowOpts.Column] is given, or struct{} for the lock
// alone; other columns of the table are not read.
//
// On failure T is zero. [ErrNotFound]: no row has the key, and nothing is locked. [ErrNotAcquired]: the row or the
// table is taken, or the session's own limit ended the wait. If opts.Wait was given, nothing is locked after any
// error, and the transaction is as usable as before, its settings and savepoints too; the exceptions are
// [ErrDeadlock], and [ErrConflict] if the row was changed since a transaction above read committed began. Without a
// Wait the transaction is aborted after an error of the server, as always in PostgreSQL. A row that does not fit T is
// an error, several rows with the key are one, and so is a row that a policy of row security lets the role see and not
// lock; none of these matches a sentinel, since another try would not help.
//
// The table is a pgx.Identifier, {"accounts"} or {"bank", "accounts"}: a single string could not distinguish the table
// "a.b" from the table b of the schema a. Each part is quoted as it is. See docs/rows.md for partitions, foreign
// tables, row security and triggers.
//
// How it works: SELECT … FOR UPDATE, and when that does not find one row a look at why. With NoWait, SKIP LOCKED on
// condition that only one row has the key, and a second try, because SKIP LOCKED can miss a row that has just become free.
// With a Wait or NoWait, inside a savepoint in which lock_timeout and statement_timeout are set, and after which they
// are restored. Such a wait that fails writes a line into the server's log. The first call for a table in a process
// looks the table up in the catalog.
func LockRow[T any](ctx context.Context, tx Tx, table pgx.Identifier, key Values, opts *RowOpts) (T, error) {
	var zero T
	lock, err := newRowLock[T]("lock row of", table, []Values{key}, opts)
	if err != nil {
		return zero, err
	}
	rows, err := lockRows[T](ctx, tx, lock)
	if err != nil {
		return zero, err
	}
	return rows[0], nil
}

// LockRows locks the rows that have the keys until the transaction ends, and returns them in the order of the keys
// given: the row of keys[i] is at i, and a key given twice has its row twice. All keys must have the same columns.
//
// The rows are locked in the order of their keys, whatever the order in which they are given, so that callers
// of LockRows cannot deadlock on one table. (The order is that of the columns sorted by name, and within each
// the server's: a transaction that changes a key meanwhile can still get in the way.)
//
// On failure the result is nil, and errors are those of [LockRow]: ErrNotFound if any row is missing, ErrNotAcquired
// if any is taken. With a Wait or NoWait nothing is locked then; without, the rows that were found stay locked until the
// transaction, or a savepoint of the caller's, is rolled back.
func LockRows[T any](ctx context.Context, tx Tx, table pgx.Identifier, keys []Values, opts *RowOpts) ([]T, error) {
	lock, err := newRowLock[T]("lock rows of", table, keys, opts)
	if err != nil {
		return nil, err
	}
	return lockRows[T](ctx, tx, lock)
}

// rowLock is the statement that locks some rows by key, in the forms in which it may be needed.
type rowLock struct {
	statement // args and table; the text is put together when it runs

	record   *record.Record
	columns  []string // of the key
	count    int      // of the keys
	keys     string   // the FROM item of several keys
	where    string   // that a row has the key
	strength string
	wait     time.Duration
}

func newRowLock[T any](verb string, table pgx.Identifier, keys []Values, opts *RowOpts) (*rowLock, error) {
	if opts == nil {
		opts = &RowOpts{}
	}
	lock := &rowLock{statement: statement{verb: verb}, count: len(keys), wait: opts.Wait}
	bad := func(err error) error { return wrap(err, "%s %s", verb, table.Sanitize()) }
	var err error
	if lock.table, err = sqltext.Table(table); err != nil {
		return nil, bad(err)
	}
	if err = checkWait("RowOpts.Wait", opts.Wait); err != nil {
		return nil, bad(err)
	}
	if lock.record, err = recordOf[T](opts.Column); err != nil {
		return nil, bad(err)
	}
	if lock.strength, err = strengthClause(opts.Strength); err != nil {
		return nil, bad(err)
	}
	if len(keys) == 0 {
		return nil, bad(errors.New("no keys"))
	}
	if lock.columns, err = sqltext.KeyColumns(keys[0]); err != nil {
		return nil, bad(err)
	}
	var args sqltext.Args
	if len(keys) == 1 {
		lock.where, err = sqltext.KeyEquals(&args, lock.columns, keys[0])
	} else {
		lock.keys, err = sqltext.Keys(&args, lock.table, lock.columns, keys)
	}
	if err != nil {
		return nil, bad(err)
	}
	lock.args = args.Values()
	return lock, nil
}

func checkWait(name string, wait time.Duration) error {
	if wait < 0 && wait != NoWait {
		return fmt.Errorf("%s is %v: give NoWait, zero or more", name, wait)
	}
	return nil
}

// How a statement treats rows that are taken.
const (
	waiting  = ""
	skipping = " SKIP LOCKED"
	failing  = " NOWAIT"
)

// lockRows locks and returns the row of each key.
func lockRows[T any](ctx context.Context, tx Tx, lock *rowLock) ([]T, error) {
	facts, err := rowstmt.FactsOf(ctx, tx, lock.table)
	if err == nil && lock.wait == NoWait {
		err = facts.RefuseForeign(ctx, tx, lock.table, "NoWait")
	}
	if err != nil {
		return nil, lock.failWait(ctx, err)
	}
	if lock.record, err = facts.Fit(lock.record); err != nil {
		return nil, lock.fail(err)
	}
	var rows []T
	err = rowstmt.Protect(ctx, tx, facts, lock.wait, func() error {
		var err error
		rows, err = lockRowsOnce[T](ctx, tx, lock)
		return err
	})
	if err != nil {
		rowstmt.Forget(lock.table, err)
		return nil, err
	}
	return rows, nil
}

// lockRowsOnce locks the rows, or finds out why it cannot.
func lockRowsOnce[T any](ctx context.Context, tx Tx, lock *rowLock) ([]T, error) {
	taken := waiting
	if lock.wait == NoWait {
		taken = skipping
	}
	rows, err := selectLocked[T](ctx, tx, lock, taken)
	if len(rows) == lock.count || err != nil {
		return rows, err
	}
	filtered, err := lock.explain(ctx, tx)
	switch {
	case err != nil:
		return nil, err
	case taken == waiting && filtered:
		return nil, &rowstmt.UnsettledError{Err: lock.fail(errPolicy)}
	case taken == waiting:
		return nil, &rowstmt.UnsettledError{Err: lock.fail(fmt.Errorf("%w: a row was replaced by another, again and again", lockerr.NotAcquired))}
	case filtered:
		taken = failing // says which rows are taken, where SKIP LOCKED says as little as a policy does
	}
	// All exist, so look again: SKIP LOCKED can miss a row that has just become free.
	rows, err = selectLocked[T](ctx, tx, lock, taken)
	switch {
	case len(rows) == lock.count || err != nil:
		return rows, err
	case filtered:
		return nil, &rowstmt.UnsettledError{Err: lock.fail(errPolicy)}
	}
	return nil, lock.fail(lockerr.NotAcquired)
}

// errPolicy is the reason why a row that can be seen cannot be locked.
var errPolicy = errors.New("the row is there, but a policy of row security (or a view) keeps this role from locking it")

// selectLocked returns the locked row of each key: another number if keys have none or several.
func selectLocked[T any](ctx context.Context, tx Tx, lock *rowLock, taken string) ([]T, error) {
	s := lock.statement
	s.text = lock.selectText(taken)
	if lock.count == 1 {
		rows, err := collect[T](ctx, tx, lock.record, &s)
		if err != nil {
			return nil, s.failWait(ctx, err)
		}
		return rows, nil
	}
	result, err := selectByNumber[T](ctx, tx, lock, &s)
	if err != nil {
		return nil, s.failWait(ctx, err)
	}
	return result, nil
}

// selectByNumber puts each row where its key was given.
func selectByNumber[T any](ctx context.Context, tx Tx, lock *rowLock, s *statement) ([]T, error) {
	rows, err := tx.Query(ctx, s.text, s.args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	result := make([]T, lock.count)
	found := 0
	for rows.Next() {
		var (
			row    T
			number int64
		)
		if err := scan(rows, lock.record, &row, &number); err != nil {
			return nil, err
		}
		result[number-2] = row
		found++
	}
	if err := rows.Err(); err != nil || found < lock.count {
		return nil, err
	}
	return result, nil
}

// selectText is the statement that locks. Where it cannot be seen from the rows that a key has several, because taken
// ones are skipped or because there are several keys, the statement itself locks none of them: the one that is free need
// not be the one that was meant.
func (l *rowLock) selectText(taken string) string {
	if l.count == 1 {
		text := "SELECT " + l.record.Select + "\nFROM " + l.table + "\nWHERE " + l.where
		if taken != waiting {
			text += " AND " + onlyOne(l.table, l.where)
		}
		return text + "\n" + l.strength + taken
	}
	columns := l.record.Columns
	text := "SELECT "
	if len(columns) > 0 {
		text += sqltext.QuoteListOf("pgbaton_row.", columns) + ", "
	}
	return text + sqltext.KeyNumber +
		"\nFROM " + l.keys +
		"\nJOIN " + l.table + " AS pgbaton_row ON " + sqltext.KeyMatches("pgbaton_row", l.columns) +
		"\nWHERE " + onlyOne(l.table+" AS pgbaton_other", sqltext.KeyMatches("pgbaton_other", l.columns)) +
		"\nORDER BY " + sqltext.QuoteListOf("pgbaton_row.", l.columns) +
		"\n" + l.strength + " OF pgbaton_row" + taken
}

// onlyOne is the condition that just one row of the table meets a condition.
func onlyOne(table, where string) string {
	return "(SELECT pg_catalog.count(*) FROM " + table + " WHERE " + where + ") = 1"
}

// sqlFiltered is true if the role may see rows and not be able to lock them. A view does not tell about its tables.
const sqlFiltered = `(SELECT pg_catalog.bool_or(c.relkind = 'v' OR pg_catalog.row_security_active(c.oid))
    FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(%s::pg_catalog.text)::pg_catalog.oid)`

// explain counts the rows of each key, and returns an error if it is not one.
func (l *rowLock) explain(ctx context.Context, tx Tx) (filtered bool, err error) {
	s := l.statement
	filter := fmt.Sprintf(sqlFiltered, sqltext.Placeholder(len(s.args)+1))
	s.args = append(s.args[:len(s.args):len(s.args)], l.table)
	if l.count == 1 {
		s.text = "SELECT 2, pg_catalog.count(*), " + filter + "\nFROM " + l.table + "\nWHERE " + l.where
	} else {
		s.text = "SELECT " + sqltext.KeyNumber + ",\n(SELECT pg_catalog.count(*) FROM " + l.table +
			" AS pgbaton_row WHERE " + sqltext.KeyMatches("pgbaton_row", l.columns) + "), " + filter +
			"\nFROM " + l.keys + "\nORDER BY 1"
	}
	rows, err := tx.Query(ctx, s.text, s.args...)
	if err != nil {
		return false, s.failWait(ctx, err)
	}
	defer rows.Close()
	for rows.Next() {
		var number, count int64
		if err := rows.Scan(&number, &count, &filtered); err != nil {
			return false, s.failWait(ctx, err)
		}
		if key := int(number) - 1; key >= 1 && key <= l.count && count != 1 {
			return false, l.failKey(key, count)
		}
	}
	if err := rows.Err(); err != nil {
		return false, s.failWait(ctx, err)
	}
	return filtered, nil
}

// failKey returns an error with the number of rows that a key has; keys are counted from 1.
func (l *rowLock) failKey(key int, count int64) error {
	err := lockerr.NotFound
	if count > 1 {
		err = severalRows(count)
	}
	if l.count > 1 {
		err = fmt.Errorf("key %d of %d: %w", key, l.count, err)
	}
	return l.fail(err)
}

// severalRows refuses a key that does not name one row.
func severalRows(count int64) error {
	return fmt.Errorf("%d rows have the key, and none was changed: give all columns of a unique one", count)
}
