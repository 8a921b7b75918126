package pgbaton

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

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
	wrap := func(err error) error { return fmt.Errorf("pgbaton: %s %q: %w", verb, []string(table), err) }
	var err error
	if v.table, err = sqltext.Table(table); err != nil {
		return nil, wrap(err)
	}
	if err = sqltext.CheckName(v.column); err != nil {
		return nil, wrap(fmt.Errorf("VersionOpts.Column: %w", err))
	}
	if v.maxAttempts < 1 {
		return nil, wrap(fmt.Errorf("VersionOpts.MaxAttempts is %d: give one or more", v.maxAttempts))
	}
	if v.keyColumns, err = sqltext.KeyColumns(key); err != nil {
		return nil, wrap(err)
	}
	return v, nil
}

func (v *versioned) wrap(err error) error {
	return fmt.Errorf("pgbaton: %s %s: %w", v.verb, v.table, err)
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
	look   string // how many rows have the key, and the version of one
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
		look:   "SELECT pg_catalog.count(*), pg_catalog.max(" + column + ")\nFROM " + v.table + "\nWHERE " + hasKey,
	}
	changeCache.Put(key, texts)
	return texts
}

// run runs the write, update or delete, and returns the version of the row that it wrote.
func (c *change) run(ctx context.Context, db Querier, text string, expected int64) (int64, error) {
	facts, err := factsOf(ctx, db, c.table)
	if err != nil {
		return 0, c.fail(err)
	}
	c.text = text
	var version int64
	err = protect(ctx, db, facts, 0, func() error {
		written, err := queryRow(ctx, db, []any{&version}, c.text, c.args...)
		switch {
		case err != nil:
			return c.fail(err)
		case !written:
			return c.explain(ctx, db, expected)
		}
		return nil
	})
	if err != nil {
		forgetTable(c.table, err)
		return 0, err
	}
	return version, nil
}

// contradiction says why a row could not be written, or nil if a look shows no reason.
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

// explain looks why a write changed nothing. Its own snapshot could not tell: the row may have been changed or deleted
// while the write waited for it.
func (c *change) explain(ctx context.Context, db Querier, expected int64) error {
	s := c.statement
	s.text, s.args = c.look, s.args[:c.keyArgs]
	var (
		count   int64
		current *int64
	)
	if _, err := queryRow(ctx, db, []any{&count, &current}, s.text, s.args...); err != nil {
		return s.fail(err)
	}
	if err := contradiction(count, current, expected); err != nil {
		return s.fail(err)
	}
	return &unsettledError{s.fail(errors.New("the row is there and has the version, " +
		"but a policy of row security, a trigger or a rule keeps it from being written"))}
}
