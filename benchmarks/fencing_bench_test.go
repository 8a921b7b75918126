package benchmarks

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// fencingBench is a connection on which the disk is not what is measured, and a lock.
func fencingBench(b *testing.B) (context.Context, *pgx.Conn, *pgbaton.Lock) {
	b.Helper()
	ctx, dsn := context.Background(), testkit.Migrated(b)
	conn := testkit.Connect(b, dsn)
	_, err := conn.Exec(ctx, "SET synchronous_commit = off")
	require.NoError(b, err)
	_, err = conn.Exec(ctx, `
		CREATE TABLE ledger (id int PRIMARY KEY, balance int NOT NULL, fence bigint, "last Token" bigint) WITH (fillfactor = 50);
		INSERT INTO ledger SELECT i, 0, 0, 0 FROM generate_series(1, 1000) AS i; ANALYZE ledger`)
	require.NoError(b, err)
	lock, err := testclient.New(b, dsn, nil).Acquire(ctx, pgbaton.Name("ledger"))
	require.NoError(b, err)
	return ctx, conn, lock
}

// BenchmarkFence times a transaction with one UPDATE, bare and with a fence before it, in turns. It reports the
// medians: of the bare one, and what the others take longer. SELECT 1 is what the round trip alone takes.
func BenchmarkFence(b *testing.B) {
	ctx, conn, lock := fencingBench(b)
	token := lock.Token()
	variants := []struct {
		name  string
		fence func(tx pgx.Tx) error
	}{
		{"bare", func(pgx.Tx) error { return nil }},
		{"SELECT-1", func(tx pgx.Tx) error { return tx.QueryRow(ctx, "SELECT 1").Scan(new(int)) }},
		{"AssertHeld", func(tx pgx.Tx) error { return lock.Assert(ctx, tx) }},
		{"Fence", func(tx pgx.Tx) error { return pgbaton.Fence(ctx, tx, "same", lock.Token()) }},
		{"Fence-new-token", func(tx pgx.Tx) error { token++; return pgbaton.Fence(ctx, tx, "rising", token) }},
		{"FenceShared", func(tx pgx.Tx) error {
			return pgbaton.Fence(ctx, tx, "same", lock.Token(), &pgbaton.LockOpts{Shared: true})
		}},
	}
	times := make([][]time.Duration, len(variants))
	b.ResetTimer()
	for range b.N {
		for i, v := range variants {
			began := time.Now()
			err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
				if err := v.fence(tx); err != nil {
					return err
				}
				_, err := tx.Exec(ctx, "UPDATE ledger SET balance = balance + 1 WHERE id = 1")
				return err
			})
			times[i] = append(times[i], time.Since(began))
			require.NoError(b, err)
		}
	}
	var bare time.Duration
	for i, v := range variants {
		slices.Sort(times[i])
		median := times[i][len(times[i])/2]
		b.ReportMetric(float64((median-bare).Nanoseconds())/1e3, v.name+"-µs")
		if i == 0 {
			bare = median
		}
	}
	b.ReportMetric(0, "ns/op") // of all of them: says nothing
}

// BenchmarkFenceGuard is the time for each row of an UPDATE of a thousand, without a trigger and with the guard.
func BenchmarkFenceGuard(b *testing.B) {
	ctx, conn, _ := fencingBench(b)
	const rows = 1000
	for _, c := range []struct{ name, trigger, set, update string }{
		{"NoTrigger", "", "0", "balance = balance + 1, fence = 7"},
		{"TokenInColumn", "fence_guard()", "0", "balance = balance + 1, fence = 7"},
		{"TokenInSetting", "fence_guard()", "8", "balance = balance + 1"},
		{"OtherColumn", "fence_guard('last Token')", "0", `balance = balance + 1, "last Token" = 7`},
		{"OtherColumnInSetting", "fence_guard('last Token')", "8", "balance = balance + 1"},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, err := conn.Exec(ctx, "DROP TRIGGER IF EXISTS guard ON ledger")
			require.NoError(b, err)
			if c.trigger != "" {
				_, err = conn.Exec(ctx, "CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON ledger "+
					"FOR EACH ROW EXECUTE FUNCTION pgbaton."+c.trigger)
				require.NoError(b, err)
			}
			_, err = conn.Exec(ctx, "SELECT set_config('pgbaton.token', $1, false)", c.set)
			require.NoError(b, err)
			b.ResetTimer()
			for range b.N {
				_, err := conn.Exec(ctx, "UPDATE ledger SET "+c.update)
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/1e3/float64(b.N)/rows, "µs/row")
		})
	}
}
