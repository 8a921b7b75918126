package pgbaton

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Querier runs statements. A *pgxpool.Pool, a *pgx.Conn and a pgx.Tx are Queriers as they are; a *sql.DB or
// *sql.Conn becomes one by [SQLDB], a *sql.Tx by [SQLTx].
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Tx is an open transaction: a pgx.Tx, or a *sql.Tx by [SQLTx]. What locks until the end of a transaction
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
		return nil, err
	}
	return &sqlRows{Rows: rows}, nil
}

func (q sqlQuerier) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	rows, err := q.handle.QueryContext(ctx, query, args...) //nolint:sqlclosecheck,rowserrcheck // Scan closes
	return sqlRow{rows, err}
}

type sqlTx struct {
	sqlQuerier

	tx *sql.Tx
}

func (t sqlTx) Commit(context.Context) error   { return t.tx.Commit() }
func (t sqlTx) Rollback(context.Context) error { return t.tx.Rollback() }

// sqlRow is the first row of a query, as pgx.Row.
type sqlRow struct {
	rows *sql.Rows
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
	return r.rows.Close()
}

// sqlRows is sql.Rows as pgx.Rows. The methods that pgx alone can answer return nothing.
type sqlRows struct {
	*sql.Rows // Next, Scan, Err
}

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

// run runs a statement for its effect.
func run(ctx context.Context, q Querier, statement string, args ...any) error {
	rows, err := q.Query(ctx, statement, args...)
	if err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}

// queryRow scans the only row of a query and says whether there was one.
func queryRow(ctx context.Context, q Querier, dests []any, statement string, args ...any) (bool, error) {
	err := q.QueryRow(ctx, statement, args...).Scan(dests...)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}
