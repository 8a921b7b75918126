package poolers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// operation is a call of the library on rows or in a transaction that adds one to a counter of its own, by a read and a write
// that only the call keeps together.
type operation struct {
	name string
	inTx bool // all of it is one transaction
	run  func(ctx context.Context, pool *pgxpool.Pool) error
}

type counter struct {
	ID      int64
	Value   int64
	Version int64
}

var (
	counters = pgx.Identifier{"counter"}
	jobs     = pgx.Identifier{"job"}
)

func rowOf(operation int64) pgbaton.Values { return pgbaton.Values{"id": operation} }

// The counter of an operation is the row of its place here.
var operations = []operation{
	{"LockRow", true, lockRow},
	{"ClaimRows", true, claimRow},
	{"UpdateVersion", false, updateVersion},
	{"Mutate", false, mutate},
	{"AcquireTx", true, acquireTx},
	{"Fence", true, fence},
}

// schemaOf gives a database the counters, and more jobs than any test claims.
func schemaOf(t *testing.T, dsn string) {
	t.Helper()
	testkit.Run(t, dsn, fmt.Sprintf(`
CREATE TABLE counter (id bigint PRIMARY KEY, value bigint NOT NULL DEFAULT 0, version bigint NOT NULL DEFAULT 1);
INSERT INTO counter (id) SELECT generate_series(0, %d);
CREATE TABLE job (id bigint PRIMARY KEY);
INSERT INTO job SELECT generate_series(1, 100000);
CREATE TABLE granted (seq bigserial PRIMARY KEY, id bigint NOT NULL, token bigint NOT NULL);`, len(operations)-1))
}

// inTx runs fn once in a transaction. A second attempt would hide what a pooler does.
func inTx(ctx context.Context, pool *pgxpool.Pool, fn func(ctx context.Context, tx pgx.Tx) error) error {
	return pgbaton.InTx(ctx, pool, &pgbaton.TxOpts{MaxAttempts: 1}, fn)
}

func lockRow(ctx context.Context, pool *pgxpool.Pool) error {
	return inTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		row, err := pgbaton.LockRow[counter](ctx, tx, counters, rowOf(0), nil)
		if err != nil {
			return err
		}
		return write(ctx, tx, row)
	})
}

// write sets a counter to one more than what was read.
func write(ctx context.Context, tx pgx.Tx, row counter) error {
	_, err := tx.Exec(ctx, "UPDATE counter SET value = $1 WHERE id = $2", row.Value+1, row.ID)
	return err
}

// claimRow takes a job away and counts it without a look at the counter: two that claim one job delete it once.
func claimRow(ctx context.Context, pool *pgxpool.Pool) error {
	return inTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := pgbaton.ClaimRows[int64](ctx, tx, jobs, 1, &pgbaton.ClaimOpts{Column: "id", OrderBy: "id"})
		if err != nil {
			return err
		}
		if len(rows) != 1 {
			return fmt.Errorf("%d jobs were claimed", len(rows))
		}
		tag, err := tx.Exec(ctx, "DELETE FROM job WHERE id = $1", rows[0])
		if err == nil && tag.RowsAffected() != 1 {
			err = fmt.Errorf("job %d was claimed twice", rows[0])
		}
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE counter SET value = value + 1 WHERE id = $1", int64(1))
		return err
	})
}

func updateVersion(ctx context.Context, pool *pgxpool.Pool) error {
	for {
		row := counter{ID: 2}
		err := pool.QueryRow(ctx, "SELECT value, version FROM counter WHERE id = $1", row.ID).Scan(&row.Value, &row.Version)
		if err != nil {
			return err
		}
		_, err = pgbaton.UpdateVersion(ctx, pool, counters, rowOf(row.ID), row.Version, pgbaton.Values{"value": row.Value + 1}, nil)
		if !errors.Is(err, pgbaton.ErrConflict) {
			return err
		}
	}
}

func mutate(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pgbaton.Mutate(ctx, pool, counters, rowOf(3), &pgbaton.VersionOpts{MaxAttempts: 10_000}, func(row *counter) error {
		row.Value++
		return nil
	})
	return err
}

func acquireTx(ctx context.Context, pool *pgxpool.Pool) error { return underKey(ctx, pool, 4, nil) }

func fence(ctx context.Context, pool *pgxpool.Pool) error {
	return underKey(ctx, pool, 5, func(tx pgx.Tx, token pgbaton.Token) error {
		return pgbaton.Fence(ctx, tx, "counter/5", token)
	})
}

// underKey changes a counter under the lock of a key, which is all that keeps the read and the write together.
func underKey(ctx context.Context, pool *pgxpool.Pool, id int64, then func(pgx.Tx, pgbaton.Token) error) error {
	return inTx(ctx, pool, func(ctx context.Context, tx pgx.Tx) error {
		token, err := pgbaton.AcquireTx(ctx, tx, pgbaton.Name(fmt.Sprint("counter/", id)))
		if err == nil && then != nil {
			err = then(tx, token)
		}
		if err != nil {
			return err
		}
		row := counter{ID: id}
		if err = tx.QueryRow(ctx, "SELECT value FROM counter WHERE id = $1", id).Scan(&row.Value); err != nil {
			return err
		}
		if _, err = tx.Exec(ctx, "INSERT INTO granted (id, token) VALUES ($1, $2)", id, int64(token)); err != nil {
			return err
		}
		return write(ctx, tx, row)
	})
}

// tally is what became of the calls of an operation.
type tally struct {
	done, unknown, failed atomic.Int64
}

// count notes the end of a call. A call that is not a single transaction may have written whatever its error.
func (c *tally) count(op operation, err error) {
	switch {
	case err == nil:
		c.done.Add(1)
	case errors.Is(err, pgbaton.ErrCommitUnknown), !op.inTx:
		c.unknown.Add(1)
	default:
		c.failed.Add(1)
	}
}

// requireCounts makes sure that each call that succeeded has counted once, and none that failed has; and that tokens rose in
// the order of the grants.
func requireCounts(t *testing.T, dsn string, tallies []tally) {
	t.Helper()
	conn := testkit.Connect(t, dsn)
	for i, op := range operations {
		c := &tallies[i]
		done, unknown := c.done.Load(), c.unknown.Load()
		value := testkit.Value[int64](t, conn, "SELECT value FROM counter WHERE id = $1", i)
		t.Logf("%s: %d done, %d unknown, %d failed; the counter is %d", op.name, done, unknown, c.failed.Load(), value)
		require.GreaterOrEqual(t, value, done, "%s: an update was lost", op.name)
		require.LessOrEqual(t, value, done+unknown, "%s: a call that failed has written", op.name)
	}
	require.Zero(t, testkit.Value[int64](t, conn, `
SELECT count(*) FROM (SELECT token <= lag(token) OVER (PARTITION BY id ORDER BY seq) AS late FROM granted) AS g WHERE late`),
		"tokens that do not rise")
}
