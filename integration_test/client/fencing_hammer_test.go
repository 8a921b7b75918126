package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Writers with tokens of all ages, at every isolation level: what is written is in the order of the tokens. Mutants
// of the fence, without one of its locks, prove that it is looked at closely enough.
func TestFence_Hammer(t *testing.T) {
	t.Parallel()
	const mutate = `DO $$ BEGIN EXECUTE replace(
		pg_get_functiondef('pgbaton.fence(text,bigint,boolean)'::regprocedure), '%s', ''); END $$`
	for name, mutant := range map[string]string{
		"None": "SELECT", "NoExclusiveLock": fmt.Sprintf(mutate, "FOR NO KEY UPDATE"), "NoSharedLock": fmt.Sprintf(mutate, "FOR SHARE"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			violations := hammerFence(t, mutant)
			for rounds := 1; name != "None" && violations == 0 && rounds < 50; rounds++ {
				violations = hammerFence(t, mutant)
			}
			t.Logf("%d violations", violations)
			require.Equal(t, name != "None", violations > 0)
		})
	}
}

func hammerFence(t *testing.T, mutant string) (violations int) {
	t.Helper()
	ctx, dsn := testkit.Context(t), testkit.Migrated(t)
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	config.MaxConns = 8
	pool, err := pgxpool.NewWithConfig(ctx, config)
	require.NoError(t, err)
	defer pool.Close()
	_, err = pool.Exec(ctx, `CREATE TABLE log (place bigint GENERATED ALWAYS AS IDENTITY, token bigint, shared boolean)`)
	require.NoError(t, err)
	_, err = pool.Exec(ctx, mutant)
	require.NoError(t, err)

	levels := []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}
	var written, stale atomic.Int32
	var newest atomic.Int64
	newest.Store(1)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 60 {
				token := pgbaton.Token(max(newest.Add(1)-rand.Int64N(4), 1)) // it may have waited
				shared := rand.IntN(4) == 0
				opts := &pgbaton.TxOpts{Isolation: levels[rand.IntN(len(levels))], MaxAttempts: 100}
				switch err := fencedWrite(ctx, pool, opts, token, shared); {
				case err == nil:
					written.Add(1)
				case errors.Is(err, pgbaton.ErrStaleToken):
					stale.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	t.Logf("%d written, %d stale", written.Load(), stale.Load())
	require.Greater(t, min(written.Load(), stale.Load()), int32(20), "too few to tell")

	rows, err := pool.Query(ctx, "SELECT token, shared FROM log ORDER BY place")
	require.NoError(t, err)
	var last, token pgbaton.Token
	var shared bool
	_, err = pgx.ForEachRow(rows, []any{&token, &shared}, func() error {
		if token < last {
			violations++
		}
		if !shared {
			last = token
		}
		return nil
	})
	require.NoError(t, err)
	return violations
}

func fencedWrite(ctx context.Context, pool *pgxpool.Pool, opts *pgbaton.TxOpts, token pgbaton.Token, shared bool) error {
	return pgbaton.InTx(ctx, pool, opts, func(ctx context.Context, tx pgx.Tx) error {
		if err := pgbaton.Fence(ctx, tx, "log", token, &pgbaton.LockOpts{Shared: shared}); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO log (token, shared) VALUES ($1, $2)", token, shared)
		return err
	})
}
