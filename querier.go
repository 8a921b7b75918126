package pgbaton

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// Querier runs statements. A *pgxpool.Pool, a *pgx.Conn and a pgx.Tx are Queriers as they are; a *sql.DB or
// *sql.Conn becomes one by [SQLDB], a *sql.Tx by [SQLTx].
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Tx is an open transaction: a pgx.Tx, or a *sql.Tx by [SQLTx]. A call that locks until the end of a transaction
// takes a Tx, so that it does not compile with a pool, where the lock would be gone at once.
type Tx interface {
	Querier
	Commit(ctx context.Context) error
	Rollback(ctx context.Context) error
}

var (
	_ Tx       = pgx.Tx(nil)
	_ Querier  = (*pgx.Conn)(nil)
	_ Tx       = sqlTx{}
	_ pgx.Rows = (*sqlRows)(nil)
)

// SQLDB makes a Querier of a *sql.DB or a *sql.Conn, with pgx's stdlib driver or with lib/pq. It holds
// nothing; make one whenever it is needed.
//
// Values and fields are what the driver and database/sql can convert: with lib/pq a slice needs pq.Array.
func SQLDB(
	db interface {
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	},
) Querier {
	return sqlQuerier{db}
}

// SQLTx makes a [Tx] of a *sql.Tx, as [SQLDB] does for a database. The caller still ends the transaction.
func SQLTx(tx *sql.Tx) Tx {
	return sqlTx{sqlQuerier{tx}, tx}
}

type sqlQuerier struct {
	handle interface {
		QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	}
}

func (q sqlQuerier) Query(ctx context.Context, query string, args ...any) (pgx.Rows, error) {
	rows, err := q.handle.QueryContext(ctx, query, args...) //nolint:sqlclosecheck,rowserrcheck // the caller's, as in pgx
	if err != nil {
		return nil, queryEnded(ctx, err)
	}
	return &sqlRows{rows, ctx}, nil
}

func (q sqlQuerier) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	rows, err := q.handle.QueryContext(ctx, query, args...) //nolint:sqlclosecheck,rowserrcheck // Scan closes
	return sqlRow{&sqlRows{rows, ctx}, queryEnded(ctx, err)}
}

type sqlTx struct {
	sqlQuerier

	tx *sql.Tx
}

func (t sqlTx) Commit(context.Context) error   { return t.tx.Commit() }
func (t sqlTx) Rollback(context.Context) error { return t.tx.Rollback() }

// sqlRow is the first row of a query, as pgx.Row.
type sqlRow struct {
	rows *sqlRows
	err  error
}

func (r sqlRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	return queryEnded(r.rows.ctx, r.rows.Rows.Close())
}

// sqlRows is sql.Rows as pgx.Rows. The methods that pgx alone can answer return nothing.
type sqlRows struct {
	*sql.Rows // Next, Scan

	ctx context.Context //nolint:containedctx // of the query
}

func (r *sqlRows) Err() error                    { return queryEnded(r.ctx, r.Rows.Err()) }
func (r *sqlRows) Close()                        { _ = r.Rows.Close() }
func (r *sqlRows) CommandTag() pgconn.CommandTag { return pgconn.CommandTag{} }
func (r *sqlRows) RawValues() [][]byte           { return nil }
func (r *sqlRows) Conn() *pgx.Conn               { return nil }
func (r *sqlRows) TypeMap() *pgtype.Map          { return nil }

func (r *sqlRows) FieldDescriptions() []pgconn.FieldDescription {
	names, err := r.Columns()
	if err != nil {
		return nil
	}
	fields := make([]pgconn.FieldDescription, len(names))
	for i, name := range names {
		fields[i].Name = name
	}
	return fields
}

func (r *sqlRows) Values() ([]any, error) {
	values := make([]any, len(r.FieldDescriptions()))
	dests := make([]any, len(values))
	for i := range values {
		dests[i] = &values[i]
	}
	return values, r.Scan(dests...)
}

// Values are columns with a value each: the key of a row, or what to set. The names are taken as they are,
// with upper case and odd characters, and quoted; the values are sent as parameters, never as SQL.
//
// A key must be that of one row: a call whose key several rows have does nothing and returns an error. The key needs no index, but
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
// server did not know, a pooler that is full, and the sentinel that the error represents.
func (s *statement) fail(err error) error {
	err = pgerr.Explain(translate(err))
	if name := sqltext.AtPosition(s.text, pgerr.Position(err)); name != "" {
		return wrap(err, "%s %s: at %s", s.verb, s.table, name)
	}
	return wrap(err, "%s %s", s.verb, s.table)
}

// failWait is fail for a statement that may wait: the end of the context, and of the statement by a timeout or an
// operator, is the end of the wait.
func (s *statement) failWait(ctx context.Context, err error) error {
	return s.fail(waitEnded(ctx, err))
}

// waitEnded makes an error match ErrNotAcquired if it is that of a wait that was ended from outside.
func waitEnded(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, lockerr.NotAcquired):
		return err
	case ctx.Err() != nil, pgerr.Code(err) == pgerr.QueryCanceled:
		return fmt.Errorf("%w: %w", lockerr.NotAcquired, withContext(ctx, err))
	}
	return err
}

// withContext is an error of a driver with that of its context, if that has ended: drivers call a deadline a cancel.
func withContext(ctx context.Context, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil && !errors.Is(err, ctxErr) {
		return fmt.Errorf("%w: %w", ctxErr, err)
	}
	return err
}

// queryEnded is withContext for the errors by which drivers tell that a context has ended: pgx's, under database/sql, that the
// connection is a bad one, and lib/pq that the statement was cancelled. Any other error may have come before the end.
func queryEnded(ctx context.Context, err error) error {
	if errors.Is(err, driver.ErrBadConn) || pgerr.Code(err) == pgerr.QueryCanceled {
		return withContext(ctx, err)
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
