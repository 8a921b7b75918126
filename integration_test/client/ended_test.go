package client

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// What a call that may wait wants is held by others, and its context ends at any moment, also in the middle of a try: the
// error says both. A service tells by it whether somebody was there or its time was up.
func TestWait_SaysThatItsContextHasEnded(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	client, other, dsn := pair(t)
	pool := testkit.Pool(t, dsn)
	key, free := pgbaton.Name("taken"), pgbaton.Name("free")
	lock, err := other.Acquire(ctx, key)
	require.NoError(t, err)
	theirs, err := other.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	permit, err := theirs.Acquire(ctx, 1)
	require.NoError(t, err)
	s, err := client.Semaphore(ctx, "s", 1)
	require.NoError(t, err)

	never := func(context.Context, *pgbaton.Lock) error { panic("not held") }
	for name, call := range map[string]func(ctx context.Context) error{
		"Acquire":         func(ctx context.Context) error { _, err := client.Acquire(ctx, key); return err },
		"AcquireShared":   func(ctx context.Context) error { _, err := client.AcquireShared(ctx, key); return err },
		"AcquireAll":      func(ctx context.Context) error { _, err := client.AcquireAll(ctx, key, free); return err },
		"AcquireAll, one": func(ctx context.Context) error { _, err := client.AcquireAll(ctx, key); return err },
		"Do":              func(ctx context.Context) error { return client.Do(ctx, key, never) },
		"DoAll": func(ctx context.Context) error {
			return client.DoAll(ctx, []pgbaton.Key{key, free}, nil, func(context.Context, *pgbaton.LockSet) error { panic("not held") })
		},
		"DoTx": func(ctx context.Context) error {
			return client.DoTx(ctx, pool, key, nil, func(context.Context, pgx.Tx, *pgbaton.Lock) error { panic("not held") })
		},
		"Permit": func(ctx context.Context) error { _, err := s.Acquire(ctx, 1); return err },
	} {
		for after := time.Duration(0); after < 3*time.Millisecond; after += 10 * time.Microsecond {
			short, cancel := context.WithTimeout(ctx, after)
			err := call(short)
			cancel()
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired, "%s, after %v", name, after)
			require.ErrorIs(t, err, context.DeadlineExceeded, "%s, after %v", name, after)
		}
	}
	require.NoError(t, permit.Release(ctx))
	require.NoError(t, lock.Release(ctx))
}
