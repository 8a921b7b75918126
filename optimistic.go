package pgbaton

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/rowstmt"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// VersionOpts are the settings of [UpdateVersion], [DeleteVersion] and [Mutate]. Nil means the defaults.
type VersionOpts struct {
	// Column is the column of the version: smallint, integer or bigint, NOT NULL. Defaults to "version".
	Column string

	// MaxAttempts is how often Mutate tries in all before it gives up. Defaults to 10.
	MaxAttempts int
}

// ConflictError reports, beside an [ErrConflict], which version the row has.
type ConflictError struct {
	// Expected is the version that the caller gave.
	Expected int64
	// Current is the version that the row had when the call looked.
	Current int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("version is %d, expected %d", e.Current, e.Expected)
}

// UpdateVersion sets columns of the row that has the key, if it still has the version, and returns its new
// version: the old one plus one.
//
// On failure the row is unchanged and the version is zero. [ErrConflict]: somebody else has changed the row, and a
// [*ConflictError] carries its current version, unless a pooler has sent the look at it to a standby. [ErrNotFound]: no row
// has the key, or no longer. Neither aborts a transaction in read committed; above it a conflict is the server's own
// (SQLSTATE 40001) and does. Errors without a sentinel, since another try would not help: several rows have the key; or the
// row is as expected and yet is not written, because of a policy of row security, of a trigger that returns NULL, or of a rule.
//
// If the connection fails, the row may or may not have been updated; its version then shows which.
//
// How it works: one UPDATE … WHERE key AND version, on condition that only one row has the key. If it changed
// nothing, a second statement looks why. The first call for a table in a process looks the table up in the catalog; see docs/rows.md. A
// trigger of pgbaton.bump_version() on the table makes writers that do not use pgbaton raise the version too; it may be
// there or not:
//
//	CREATE TRIGGER bump_version BEFORE UPDATE ON accounts
//	    FOR EACH ROW EXECUTE FUNCTION pgbaton.bump_version();  -- ('version') for another column
func UpdateVersion(
	ctx context.Context, db Querier, table pgx.Identifier, key Values, version int64, set Values, opts *VersionOpts,
) (int64, error) {
	v, err := newVersioned("update version of", table, key, opts)
	if err != nil {
		return 0, err
	}
	switch _, ok := set[v.column]; {
	case ok:
		return 0, v.wrap(fmt.Errorf("set has the version column %q, which is raised by itself", v.column))
	case len(set) == 0:
		return 0, v.wrap(errors.New("nothing to set"))
	}
	c, err := v.change(set, version)
	if err != nil {
		return 0, err
	}
	return c.run(ctx, db, c.update, version)
}

// DeleteVersion deletes the row that has the key, if it still has the version. Errors are those
// of [UpdateVersion].
func DeleteVersion(
	ctx context.Context, db Querier, table pgx.Identifier, key Values, version int64, opts *VersionOpts,
) error {
	v, err := newVersioned("delete version of", table, key, opts)
	if err != nil {
		return err
	}
	c, err := v.change(nil, version)
	if err != nil {
		return err
	}
	_, err = c.run(ctx, db, c.delete, version)
	return err
}

// Mutate reads the row that has the key, lets fn change it, and writes the changed columns if nobody has changed
// the row since. Otherwise it reads the row again and calls fn again, up to [VersionOpts.MaxAttempts] times, with
// growing random pauses. So fn may run several times and should do nothing but change the row.
//
// On success it returns the row as it was written, triggers included. If fn changed nothing, nothing is written.
// T is a struct read as by [LockRow]; it need not have the version, and fn must not change it if it has.
//
// On failure nothing is written and T is zero. Errors are those of [UpdateVersion], but [ErrConflict] means that every
// attempt came too late. If the context ended during a pause, the error matches ErrConflict and the context's
// error. An error of fn is returned as it is. If the connection fails during the write, the row may have been
// written.
//
// It is meant for a pool or a database. In a transaction of the caller's it works in read committed; above it a
// conflict aborts the transaction and ErrConflict comes at once; in [InTx] the whole of it is then run again.
func Mutate[T any](
	ctx context.Context, db Querier, table pgx.Identifier, key Values, opts *VersionOpts, fn func(row *T) error,
) (T, error) {
	var zero T
	v, err := newVersioned("mutate row of", table, key, opts)
	if err != nil {
		return zero, err
	}
	r, err := recordOf[T]("")
	if err != nil {
		return zero, v.wrap(err)
	}
	facts, err := rowstmt.FactsOf(ctx, db, v.table)
	if err == nil {
		r, err = facts.Fit(r)
	}
	if err != nil {
		return zero, v.wrap(pgerr.Explain(translate(err)))
	}
	_, inTx := db.(Tx)
	for attempt := 1; ; attempt++ {
		row, err := mutateOnce(ctx, db, v, r, facts, fn)
		if err == nil {
			return row, nil
		}
		rowstmt.Forget(v.table, err)
		retry := errors.Is(err, errChanged) || !inTx && (pgerr.Retryable(err) || pgerr.StalePlan(err))
		switch {
		case !retry:
			return zero, err
		case attempt == v.maxAttempts:
			return zero, wrap(err, "%d attempts", attempt)
		}
		if ctxErr := backoff.Wait(ctx, attempt); ctxErr != nil {
			return zero, also(err, ctxErr)
		}
	}
}

// errChanged means that a row was changed between mutateOnce's read and its write.
var errChanged = fmt.Errorf("%w: changed meanwhile", lockerr.Conflict)

func mutateOnce[T any](
	ctx context.Context, db Querier, v *versioned, r *record.Record, facts *rowstmt.Facts, fn func(row *T) error,
) (T, error) {
	var zero T
	before, row, version, err := readVersioned[T](ctx, db, v, r)
	if err != nil {
		return zero, err
	}
	if err = fn(&row); err != nil {
		return zero, err
	}
	changed := Values(r.Changed(&before, &row))
	if len(changed) == 0 {
		return row, nil
	}
	if _, ok := changed[v.column]; ok {
		return zero, v.wrap(fmt.Errorf("fn changed the version of %v", r))
	}
	c, err := v.change(changed, version)
	if err != nil {
		return zero, err
	}
	c.text = c.mutate + r.Select
	var rows []T
	err = rowstmt.Protect(ctx, db, facts, 0, func() (err error) {
		rows, err = collect[T](ctx, db, r, &c.statement)
		switch {
		case err != nil:
			return c.fail(err)
		case len(rows) == 0:
			return c.explain(ctx, db, version)
		}
		return nil
	})
	var conflict *ConflictError
	switch {
	case errors.As(err, &conflict), errors.Is(err, errStandbyLooked):
		return zero, v.wrap(errChanged)
	case err != nil:
		return zero, err
	}
	return rows[0], nil
}

// readVersioned reads the row twice from the same answer: two values that share no memory, so that what fn does
// to the second shows even in slices and maps.
func readVersioned[T any](
	ctx context.Context, db Querier, v *versioned, r *record.Record,
) (before, row T, version int64, err error) {
	var args sqltext.Args
	hasKey, err := sqltext.KeyEquals(&args, v.keyColumns, v.key)
	if err != nil {
		return before, row, 0, v.wrap(err)
	}
	columns := append(append([]string(nil), r.Columns...), v.column)
	s := statement{verb: v.verb, table: v.table, args: args.Values()}
	s.text = "SELECT " + sqltext.QuoteList(columns) + "\nFROM " + v.table + "\nWHERE " + hasKey
	rows, err := db.Query(ctx, s.text, s.args...)
	if err != nil {
		return before, row, 0, s.fail(err)
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return before, row, 0, s.fail(err)
		}
		return before, row, 0, s.fail(lockerr.NotFound)
	}
	if err = scan(rows, r, &before, &version); err == nil {
		err = scan(rows, r, &row, &version)
	}
	count := int64(1)
	for err == nil && rows.Next() {
		count++
	}
	rows.Close()
	if err == nil {
		err = rows.Err()
	}
	if err == nil && count > 1 {
		err = severalRows(count)
	}
	if err != nil {
		return before, row, 0, s.fail(err)
	}
	return before, row, version, nil
}

// versioned addresses a row that has a version.
type versioned struct {
	verb        string
	table       string // quoted
	key         Values
	keyColumns  []string
	column      string // of the version
	maxAttempts int
}

func newVersioned(verb string, table pgx.Identifier, key Values, opts *VersionOpts) (*versioned, error) {
	if opts == nil {
		opts = &VersionOpts{}
	}
	v := &versioned{
		verb:        verb,
		key:         key,
		column:      cmp.Or(opts.Column, "version"),
		maxAttempts: cmp.Or(opts.MaxAttempts, defaultAttempts),
	}
	bad := func(err error) error { return wrap(err, "%s %s", verb, table.Sanitize()) }
	var err error
	if v.table, err = sqltext.Table(table); err != nil {
		return nil, bad(err)
	}
	if err = sqltext.CheckName(v.column); err != nil {
		return nil, bad(fmt.Errorf("VersionOpts.Column: %w", err))
	}
	if v.maxAttempts < 1 {
		return nil, bad(fmt.Errorf("VersionOpts.MaxAttempts is %d: give one or more", v.maxAttempts))
	}
	if v.keyColumns, err = sqltext.KeyColumns(key); err != nil {
		return nil, bad(err)
	}
	return v, nil
}

func (v *versioned) wrap(err error) error {
	return wrap(err, "%s %s", v.verb, v.table)
}

// change makes the write of some columns, or of none for a DELETE, that depends on a version.
func (v *versioned) change(set Values, version int64) (*change, error) {
	setColumns, err := sqltext.SetColumns(set)
	if err != nil {
		return nil, v.wrap(err)
	}
	var args sqltext.Args
	if err = args.AddAll(v.keyColumns, v.key); err != nil {
		return nil, v.wrap(err)
	}
	if _, err = args.Add(version); err != nil {
		return nil, v.wrap(err)
	}
	if err = args.AddAll(setColumns, set); err != nil {
		return nil, v.wrap(err)
	}
	c := &change{
		statement:   statement{verb: v.verb, table: v.table, args: args.Values()},
		changeTexts: v.texts(setColumns),
		keyArgs:     len(v.keyColumns),
	}
	return c, nil
}

// change is a write that depends on a version. Its args are the key, the version and the values to set.
type change struct {
	statement
	*changeTexts

	keyArgs int // so many of the args, from the first, are the key
}

// changeTexts are the texts for one set of names. They are kept, because to build them would take
// longer than all else that is done on the way to the driver.
type changeTexts struct {
	update string // returns the version
	mutate string // the same without what is to be returned
	delete string // returns the version
	look   string // how many rows have the key, the version of one, and whether a standby has looked
}

var changeCache sqltext.Cache[*changeTexts]

func (v *versioned) texts(setColumns []string) *changeTexts {
	var buffer [256]byte
	key := sqltext.AppendKey(buffer[:0], v.table, v.column)
	key = sqltext.AppendKey(key, v.keyColumns...)
	key = sqltext.AppendKey(key, setColumns...)
	if texts, ok := changeCache.Get(key); ok {
		return texts
	}
	column := sqltext.Quote(v.column)
	hasKey := sqltext.Equations(v.keyColumns, 1, " AND ")
	unchanged := "\nWHERE " + hasKey + " AND " + column + " = " + sqltext.Placeholder(len(v.keyColumns)+1) +
		" AND " + onlyOne(v.table, hasKey)
	set := sqltext.Equations(setColumns, len(v.keyColumns)+2, ", ") + ", " + column + " = " + column + " + 1"
	update := "UPDATE " + v.table + "\nSET " + set + unchanged + "\nRETURNING "
	texts := &changeTexts{
		update: update + column,
		mutate: update,
		delete: "DELETE FROM " + v.table + unchanged + "\nRETURNING " + column,
		look: "SELECT pg_catalog.count(*), pg_catalog.max(" + column + "), pg_catalog.pg_is_in_recovery()\nFROM " + v.table +
			"\nWHERE " + hasKey,
	}
	changeCache.Put(key, texts)
	return texts
}

// run runs the write, update or delete, and returns the version of the row that it wrote.
func (c *change) run(ctx context.Context, db Querier, text string, expected int64) (int64, error) {
	facts, err := rowstmt.FactsOf(ctx, db, c.table)
	if err != nil {
		return 0, c.fail(err)
	}
	c.text = text
	var version int64
	err = rowstmt.Protect(ctx, db, facts, 0, func() error {
		written, err := rowstmt.QueryRow(ctx, db, []any{&version}, c.text, c.args...)
		switch {
		case err != nil:
			return c.fail(err)
		case !written:
			return c.explain(ctx, db, expected)
		}
		return nil
	})
	if err != nil {
		rowstmt.Forget(c.table, err)
		return 0, err
	}
	return version, nil
}

// contradiction returns why a row could not be written, or nil if a look shows no reason.
func contradiction(count int64, current *int64, expected int64) error {
	switch {
	case count == 0:
		return lockerr.NotFound
	case count > 1:
		return severalRows(count)
	case current == nil:
		return errors.New("the row's version is NULL")
	case *current != expected:
		return fmt.Errorf("%w: %w", lockerr.Conflict, &ConflictError{Expected: expected, Current: *current})
	}
	return nil
}

// errStandbyLooked means that a write changed nothing on the primary, and that a pooler which balances reads has sent the look at
// why to a standby, where the row is still as it was expected.
var errStandbyLooked = fmt.Errorf("%w: it is not known how it was changed, since the look went to a standby", lockerr.Conflict)

// explain looks why a write changed nothing. Its own snapshot could not show why: the row may have been changed or deleted
// while the write waited for it.
func (c *change) explain(ctx context.Context, db Querier, expected int64) error {
	s := c.statement
	s.text, s.args = c.look, s.args[:c.keyArgs]
	var (
		count   int64
		current *int64
		standby bool
	)
	if _, err := rowstmt.QueryRow(ctx, db, []any{&count, &current, &standby}, s.text, s.args...); err != nil {
		return s.fail(err)
	}
	if err := contradiction(count, current, expected); err != nil {
		return s.fail(err)
	}
	if standby {
		return s.fail(errStandbyLooked)
	}
	return &rowstmt.UnsettledError{Err: s.fail(errors.New("the row is there and has the version, " +
		"but a policy of row security, a trigger or a rule keeps it from being written"))}
}
