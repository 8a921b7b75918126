package pgbaton

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// VersionOpts are the settings of [UpdateVersion], [DeleteVersion] and [Mutate]. Nil means the defaults.
type VersionOpts struct {
	// Column is the column of the version: smallint, integer or bigint, NOT NULL. Defaults to "version".
	Column string

	// MaxAttempts is how often Mutate tries in all before it gives up. Defaults to 10.
	MaxAttempts int
}

// ConflictError says beside an [ErrConflict] which version the row has.
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
// [*ConflictError] carries its current version. [ErrNotFound]: no row has the key, or no longer. Neither
// aborts a transaction in read committed; above it a conflict is the server's own (SQLSTATE 40001) and does. Errors
// without a sentinel, since another try would not help: several rows have the key; or the row is as expected
// and yet is not written, because of a policy of row security, of a trigger that returns NULL, or of a rule.
//
// If the connection fails, the row may or may not have been updated; its version then tells.
//
// How it works: one UPDATE … WHERE key AND version, on condition that only one row has the key. If it changed
// nothing, a second statement looks why. The first call for a table in a process looks the table up in the catalog; see docs/rows.md. A
// trigger of pgbaton.bump_version() on the table makes writers who do not use pgbaton raise the version too; it may be
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
// On failure nothing is written and T is zero. Errors are those of [UpdateVersion], but [ErrConflict] says that every
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
	facts, err := factsOf(ctx, db, v.table)
	if err == nil {
		r, err = facts.fit(r)
	}
	if err != nil {
		return zero, fmt.Errorf("mutate row of %s: %w", v.table, translate(err))
	}
	_, inTx := db.(Tx)
	for attempt := 1; ; attempt++ {
		row, err := mutateOnce(ctx, db, v, r, facts, fn)
		if err == nil {
			return row, nil
		}
		forgetTable(v.table, err)
		retry := errors.Is(err, errChanged) || !inTx && (pgerr.Retryable(err) || pgerr.StalePlan(err))
		switch {
		case !retry:
			return zero, err
		case attempt == v.maxAttempts:
			return zero, fmt.Errorf("mutate row of %s: %d attempts: %w", v.table, attempt, err)
		}
		if ctxErr := backoff.Wait(ctx, attempt); ctxErr != nil {
			return zero, fmt.Errorf("mutate row of %s: %w: %w", v.table, err, ctxErr)
		}
	}
}

// errChanged says that a row was changed between mutateOnce's read and its write.
var errChanged = fmt.Errorf("%w: changed meanwhile", lockerr.Conflict)

func mutateOnce[T any](
	ctx context.Context, db Querier, v *versioned, r *record.Record, facts *tableFacts, fn func(row *T) error,
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
	err = protect(ctx, db, facts, 0, func() (err error) {
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
	case errors.As(err, &conflict):
		return zero, errChanged
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

// defaultAttempts bounds the retries of Mutate and InTx.
const defaultAttempts = 10
