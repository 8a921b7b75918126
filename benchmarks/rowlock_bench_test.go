package benchmarks

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

type benchRow struct {
	ID      int64
	Owner   string
	Balance int64
	Opened  time.Time
	Version int64
}

var benchTable = pgx.Identifier{"accounts"}

func benchConn(b *testing.B) (context.Context, *pgx.Conn) {
	b.Helper()
	ctx := context.Background()
	config, err := pgx.ParseConfig(testkit.Migrated(b))
	require.NoError(b, err)
	config.RuntimeParams["synchronous_commit"] = "off" // the disk is not what is measured
	conn, err := pgx.ConnectConfig(ctx, config)
	require.NoError(b, err)
	b.Cleanup(func() { conn.Close(ctx) })
	_, err = conn.Exec(ctx, `CREATE TABLE accounts (
		id bigint PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL, opened timestamptz NOT NULL,
		version bigint NOT NULL) WITH (fillfactor = 50)`)
	require.NoError(b, err)
	_, err = conn.Exec(ctx, "INSERT INTO accounts SELECT i, 'somebody', 100, now(), 1 FROM generate_series(1, 1000) i")
	require.NoError(b, err)
	return ctx, conn
}

// compare runs the ways in random order, so that whatever else the machine does, and what one leaves to the next,
// hits them alike, and reports the median time of each way over that of the first.
func compare(b *testing.B, names []string, ways ...func(i int)) {
	b.Helper()
	for i := range 100 { // prepares the statements
		for _, way := range ways {
			way(i)
		}
	}
	times := make([][]time.Duration, len(ways))
	for i := 0; b.Loop(); i++ {
		for _, w := range rand.Perm(len(ways)) {
			start := time.Now()
			ways[w](i)
			times[w] = append(times[w], time.Since(start))
		}
	}
	base := time.Duration(0)
	for w, name := range names {
		slices.Sort(times[w])
		median := times[w][len(times[w])/2]
		if w == 0 {
			base = median
		}
		b.ReportMetric(float64(median.Nanoseconds())/1000, "µs-"+name)
		b.ReportMetric(float64(median)/float64(base), "ratio-"+name)
	}
}

func BenchmarkLockRow(b *testing.B) {
	ctx, conn := benchConn(b)
	tx, err := conn.Begin(ctx)
	require.NoError(b, err)
	defer tx.Rollback(ctx) //nolint:errcheck // nothing to keep
	const sql = `SELECT "id", "owner", "balance", "opened", "version"
FROM "accounts"
WHERE "id" = $1
FOR UPDATE`
	compare(b, []string{"by-hand", "LockRow"},
		func(i int) {
			rows, err := tx.Query(ctx, sql, int64(i%1000)+1)
			require.NoError(b, err)
			_, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[benchRow])
			require.NoError(b, err)
		},
		func(i int) {
			_, err := pgbaton.LockRow[benchRow](ctx, tx, benchTable, pgbaton.Values{"id": int64(i%1000) + 1}, nil)
			require.NoError(b, err)
		})
}

func BenchmarkUpdateVersion(b *testing.B) {
	ctx, conn := benchConn(b)
	const (
		sqlSame = `UPDATE "accounts"
SET "balance" = $3, "version" = "version" + 1
WHERE "id" = $1 AND "version" = $2 AND (SELECT pg_catalog.count(*) FROM "accounts" WHERE "id" = $1) = 1
RETURNING "version"`

		sqlBare = `UPDATE accounts SET balance = $3, version = version + 1 WHERE id = $1 AND version = $2 RETURNING version`
	)
	// All ways change one row, so that its page is the same for each.
	version := int64(1)
	byHand := func(sql string, dest ...any) func(i int) {
		return func(i int) {
			require.NoError(b, conn.QueryRow(ctx, sql, int64(1), version, int64(i)).Scan(dest...))
		}
	}
	compare(b, []string{"same-by-hand", "UpdateVersion", "bare-UPDATE"},
		byHand(sqlSame, &version),
		func(i int) {
			var err error
			version, err = pgbaton.UpdateVersion(ctx, conn, benchTable, pgbaton.Values{"id": int64(1)}, version,
				pgbaton.Values{"balance": int64(i)}, nil)
			require.NoError(b, err)
		},
		byHand(sqlBare, &version))
}

func BenchmarkMutate(b *testing.B) {
	ctx, conn := benchConn(b)
	const (
		sqlRead  = `SELECT id, owner, balance, opened, version FROM accounts WHERE id = $1`
		sqlWrite = `UPDATE accounts SET balance = $3, version = version + 1 WHERE id = $1 AND version = $2
			RETURNING id, owner, balance, opened, version`
	)
	one := func(sql string, args ...any) benchRow {
		rows, err := conn.Query(ctx, sql, args...)
		require.NoError(b, err)
		row, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[benchRow])
		require.NoError(b, err)
		return row
	}
	compare(b, []string{"by-hand", "Mutate"},
		func(int) {
			row := one(sqlRead, int64(1))
			one(sqlWrite, row.ID, row.Version, row.Balance+1)
		},
		func(int) {
			_, err := pgbaton.Mutate(ctx, conn, benchTable, pgbaton.Values{"id": int64(1)}, nil, func(row *benchRow) error {
				row.Balance++
				return nil
			})
			require.NoError(b, err)
		})
}
