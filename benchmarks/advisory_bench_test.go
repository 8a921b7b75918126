// Package benchmarks measures the library by itself, beside the least that a service would do without it. Command compare, below,
// measures it against other libraries.
package benchmarks

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Compare within one run: ns/op of AcquireRelease against those of Baseline with as many goroutines.

// spread runs b.N operations on so many goroutines, each with a number of its own.
func spread(b *testing.B, goroutines int, operation func(goroutine int) error) {
	b.Helper()
	b.ResetTimer()
	var wg sync.WaitGroup
	for g := range goroutines {
		n := b.N / goroutines
		if g < b.N%goroutines {
			n++
		}
		wg.Go(func() {
			for range n {
				if err := operation(g); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pairs/s")
}

func BenchmarkAcquireRelease(b *testing.B) {
	ctx := context.Background()
	client := testclient.New(b, testkit.Migrated(b), &pgbaton.Config{MaxHeld: 2000})
	pair := func(key pgbaton.Key) error {
		lock, err := client.Acquire(ctx, key)
		if err != nil {
			return err
		}
		return lock.Release(ctx)
	}
	for _, goroutines := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("DistinctKeys/%d", goroutines), func(b *testing.B) {
			spread(b, goroutines, func(g int) error { return pair(pgbaton.ID(int64(g))) })
		})
	}
	b.Run("OneKey/100", func(b *testing.B) {
		spread(b, 100, func(int) error { return pair(pgbaton.Name("one key")) })
	})
}

// BenchmarkBaseline is what a service would do without the library.
func BenchmarkBaseline(b *testing.B) {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(testkit.Migrated(b))
	require.NoError(b, err)
	config.MaxConns = 50
	pool, err := pgxpool.NewWithConfig(ctx, config)
	require.NoError(b, err)
	defer pool.Close()

	b.Run("TwoSelects/1", func(b *testing.B) {
		conn, err := pool.Acquire(ctx)
		require.NoError(b, err)
		defer conn.Release()
		spread(b, 1, func(int) error {
			var one int
			if err := conn.QueryRow(ctx, "SELECT 1").Scan(&one); err != nil {
				return err
			}
			return conn.QueryRow(ctx, "SELECT 1").Scan(&one)
		})
	})
	for _, goroutines := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("ConnectionPerLock/%d", goroutines), func(b *testing.B) {
			spread(b, goroutines, func(g int) error {
				return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
					if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", g); err != nil {
						return err
					}
					_, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", g)
					return err
				})
			})
		})
	}
	b.Run("OneKeyConnectionPerLock/100", func(b *testing.B) {
		spread(b, 100, func(int) error {
			return pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
				if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", -1); err != nil {
					return err
				}
				_, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", -1)
				return err
			})
		})
	})
}
