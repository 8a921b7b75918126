package pgbaton

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/rowstmt"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// constant is SQL that is part of the caller's source. Its name is not exported, so only an untyped constant
// becomes one: a string that was built at run time does not compile.
type constant string

// ClaimOpts are the settings of [ClaimRows]. Nil means the defaults.
type ClaimOpts struct {
	// Where is the condition that a row must meet, such as "state = $1 AND run_at <= now()". It must be a
	// constant in the source; what varies goes into Args. Defaults to every row.
	Where constant

	// Args are the values of $1, $2, … in Where and OrderBy. Each must be used there.
	Args []any

	// OrderBy is which rows come first, such as "priority DESC, id". It must be a constant in the source.
	// Defaults to no order.
	OrderBy constant

	// Strength is how the rows are locked, as by [RowOpts.Strength]. Defaults to FOR UPDATE.
	Strength string

	// Wait bounds how long the call may wait for the table itself, as [RowOpts.Wait] does: while it is locked by ALTER
	// TABLE and the like. NoWait does not wait. Zero waits until the context ends. Defaults to zero.
	Wait time.Duration

	// Column is the column that is read whole into T, for a T that is not a struct of columns.
	// Defaults to none: T is a struct.
	Column string
}

// ClaimRows locks up to n free rows until the transaction ends, and returns them: a worker's next jobs. It never
// waits for a row that somebody else has locked, and no two transactions get the same row.
//
// On success the rows are locked and meet the condition. None may be an empty result: that is no error. It has
// been looked for twice then, because SKIP LOCKED can miss a row that has just become free; a result
// that is shorter than n but not empty may have missed some. T is read as by [LockRow].
//
// The claim lasts as long as the transaction. Finish the job in it, with its row deleted or marked as done, or mark
// the row as taken and commit: a worker that dies before gives the row back at once. Calling it twice in one
// transaction returns the same rows again, unless they were changed so that they no longer meet the condition.
//
// Where rows move to another partition when their state changes, ClaimRows takes the savepoint that it then needs. Rows
// that a policy of row security keeps the role from locking are not claimed.
//
// On failure the result is nil. [ErrNotAcquired]: the wait for the table has ended, by the context or a limit. With
// a Wait the transaction stays usable then, else it is aborted as after any error of the server. Under repeatable
// read and above a row that was changed since the transaction began gives [ErrConflict]: claim in read committed.
// A foreign table is refused, since its rows would be waited for.
//
// How it works: SELECT … ORDER BY … LIMIT n FOR UPDATE SKIP LOCKED, on its own. Inside the WHERE of an UPDATE it
// could run once per row and take more than n. An index that serves both the condition and the order keeps it fast.
func ClaimRows[T any](ctx context.Context, tx Tx, table pgx.Identifier, n int, opts *ClaimOpts) ([]T, error) {
	if opts == nil {
		opts = &ClaimOpts{}
	}
	bad := func(err error) error { return wrap(err, "claim rows of %s", table.Sanitize()) }
	if n < 1 {
		return nil, bad(fmt.Errorf("n is %d: at least one row", n))
	}
	record, err := recordOf[T](opts.Column)
	if err != nil {
		return nil, bad(err)
	}
	s, err := claimStatement(table, n, opts)
	if err != nil {
		return nil, bad(err)
	}
	facts, err := rowstmt.FactsOf(ctx, tx, s.table)
	if err == nil {
		err = facts.RefuseForeign(ctx, tx, s.table, "not to wait for rows")
	}
	if err == nil {
		record, err = facts.Fit(record)
	}
	if err != nil {
		return nil, s.failWait(ctx, err)
	}
	s.text = "SELECT " + record.Select + s.text
	var rows []T
	err = rowstmt.Protect(ctx, tx, facts, opts.Wait, func() (err error) {
		rows, err = collect[T](ctx, tx, record, s)
		if err == nil && len(rows) == 0 {
			rows, err = collect[T](ctx, tx, record, s)
		}
		if err != nil {
			return s.failWait(ctx, err)
		}
		return nil
	})
	if err != nil {
		rowstmt.Forget(s.table, err)
		return nil, err
	}
	return rows, nil
}

// claimStatement is all of the statement but the columns.
func claimStatement(table pgx.Identifier, n int, opts *ClaimOpts) (*statement, error) {
	name, err := sqltext.Table(table)
	if err != nil {
		return nil, err
	}
	strength, err := strengthClause(opts.Strength)
	if err != nil {
		return nil, err
	}
	if err = checkWait("ClaimOpts.Wait", opts.Wait); err != nil {
		return nil, err
	}
	if err = sqltext.CheckPlaceholders(string(opts.Where+"\n"+opts.OrderBy), len(opts.Args)); err != nil {
		return nil, fmt.Errorf("ClaimOpts: %w", err)
	}
	var args sqltext.Args
	for i, value := range opts.Args {
		if _, err = args.Add(value); err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
	}
	limit, err := args.Add(int64(n))
	if err != nil {
		return nil, err
	}
	text := "\nFROM " + name
	if opts.Where != "" {
		text += "\nWHERE (" + string(opts.Where) + "\n)" // on a line of its own, below a comment at the end
	}
	if opts.OrderBy != "" {
		text += "\nORDER BY " + string(opts.OrderBy)
	}
	text += "\nLIMIT " + limit + "\n" + strength + " SKIP LOCKED"
	return &statement{verb: "claim rows of", table: name, text: text, args: args.Values()}, nil
}
