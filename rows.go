package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// Values are columns with a value each: the key of a row, or what to set. The names are taken as they are,
// with upper case and odd characters, and quoted; the values are sent as parameters, never as SQL.
//
// A key must be that of one row: a call whose key several rows have does nothing and says so. It needs no index, but
// without one every call reads the whole table.
type Values map[string]any

// recordOf is how T is read: whole from a column, if one is given, else field by field.
func recordOf[T any](column string) (*record.Record, error) {
	typ := reflect.TypeFor[T]()
	if column != "" {
		return record.Scalar(typ, column)
	}
	return record.Struct(typ)
}

// statement is one that is ready to run, with what its errors need to name.
type statement struct {
	verb  string // "lock row of"
	table string // quoted
	text  string
	args  []any
}

// fail explains an error of the statement: what was being done to which table, the identifier that the
// server did not know, and the sentinel that the error stands for.
func (s *statement) fail(err error) error {
	err = translate(err)
	if name := sqltext.AtPosition(s.text, pgerr.Position(err)); name != "" {
		return fmt.Errorf("%s %s: at %s: %w", s.verb, s.table, name, err)
	}
	return fmt.Errorf("%s %s: %w", s.verb, s.table, err)
}

// failWait is fail for a statement that may wait: the end of the context, and of the statement by a timeout or an
// operator, is the end of the wait.
func (s *statement) failWait(ctx context.Context, err error) error {
	return s.fail(waitEnded(ctx, err))
}

// waitEnded makes an error match ErrNotAcquired if it is that of a wait that was ended from outside.
func waitEnded(ctx context.Context, err error) error {
	switch ctxErr := ctx.Err(); {
	case errors.Is(err, lockerr.NotAcquired):
		return err
	case ctxErr != nil && errors.Is(err, ctxErr):
		return fmt.Errorf("%w: %w", lockerr.NotAcquired, err)
	case ctxErr != nil:
		return fmt.Errorf("%w: %w: %w", lockerr.NotAcquired, ctxErr, err)
	case pgerr.Code(err) == pgerr.QueryCanceled:
		return fmt.Errorf("%w: %w", lockerr.NotAcquired, err)
	}
	return err
}

// collect reads all rows of the statement.
func collect[T any](ctx context.Context, q Querier, r *record.Record, s *statement) ([]T, error) {
	rows, err := q.Query(ctx, s.text, s.args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var result []T
	for rows.Next() {
		var row T
		if err := scan(rows, r, &row); err != nil {
			return nil, err
		}
		result = append(result, row)
	}
	return result, rows.Err()
}

// scan reads the current row into *into and, behind its columns, into the extra places.
func scan[T any](rows pgx.Rows, r *record.Record, into *T, extra ...any) error {
	dests := append(r.Dests(into), extra...)
	if len(dests) == 0 {
		return nil
	}
	if err := rows.Scan(dests...); err != nil {
		return fmt.Errorf("read into %v: %w", r, err)
	}
	return nil
}
