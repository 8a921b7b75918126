package rowstmt

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// Querier is that of the library's door.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Tx is that of the library's door.
type Tx interface {
	Querier
	Commit(ctx context.Context) error
	Rollback(ctx context.Context) error
}

// Exec runs a statement for its effect.
func Exec(ctx context.Context, q Querier, statement string, args ...any) error {
	rows, err := q.Query(ctx, statement, args...)
	if err != nil {
		return err
	}
	rows.Close()
	return rows.Err()
}

// QueryRow scans the only row of a query and reports whether there was one.
func QueryRow(ctx context.Context, q Querier, dests []any, statement string, args ...any) (bool, error) {
	err := q.QueryRow(ctx, statement, args...).Scan(dests...)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
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
		return Exec(ctx, q, s.sql, s.args...)
	}
	_, err := QueryRow(ctx, q, s.dests, s.sql, s.args...)
	return err
}
