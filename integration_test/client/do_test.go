package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// doing is a member of the Do family that runs fn while it holds something of client's, which two clients cannot have
// at the same time.
type doing func(ctx context.Context, client *pgbaton.Client, opts *pgbaton.LockOpts, fn func(ctx context.Context) error) error

// eachDo returns the family, each member for something of its own.
func eachDo() map[string]doing {
	return map[string]doing{
		"DoWith": func(ctx context.Context, c *pgbaton.Client, opts *pgbaton.LockOpts, fn func(context.Context) error) error {
			return c.DoWith(ctx, pgbaton.Name("do"), opts, func(ctx context.Context, _ *pgbaton.Lock) error { return fn(ctx) })
		},
		"DoAll": func(ctx context.Context, c *pgbaton.Client, opts *pgbaton.LockOpts, fn func(context.Context) error) error {
			keys := []pgbaton.Key{pgbaton.Name("all/2"), pgbaton.Name("all/1")}
			return c.DoAll(ctx, keys, opts, func(ctx context.Context, locks *pgbaton.LockSet) error {
				for _, key := range keys {
					if locks.Lock(key).Err() != nil {
						return errors.New("not all keys")
					}
				}
				return fn(ctx)
			})
		},
		"Semaphore": func(ctx context.Context, c *pgbaton.Client, opts *pgbaton.LockOpts, fn func(context.Context) error) error {
			s, err := c.Semaphore(ctx, "do", 1)
			if err != nil {
				return err
			}
			return s.Do(ctx, 1, opts, func(ctx context.Context, _ *pgbaton.Permit) error { return fn(ctx) })
		},
	}
}

// The wait is bounded, what follows is not.
func TestDo_Wait(t *testing.T) {
	t.Parallel()
	for name, do := range eachDo() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testkit.Context(t)
			a, b, _ := pair(t)
			never := func(context.Context) error { panic("it is taken") }
			ran := false
			for wait := 200 * time.Millisecond; !ran; wait *= 2 { // on a busy machine it may be over before the key is acquired
				require.Less(t, wait, testkit.Patience)
				err := do(ctx, a, &pgbaton.LockOpts{Wait: wait}, func(ctx context.Context) error {
					ran = true
					began := time.Now()
					err := do(ctx, b, &pgbaton.LockOpts{Wait: wait}, never)
					require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorContains(t, err, fmt.Sprintf("the wait of %v is over", wait))
					require.GreaterOrEqual(t, time.Since(began), wait)
					require.NoError(t, ctx.Err(), "the work may take longer than the wait")

					err = do(ctx, b, &pgbaton.LockOpts{Wait: pgbaton.NoWait}, never)
					require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
					require.NotErrorIs(t, err, context.DeadlineExceeded)
					return nil
				})
				if ran {
					require.NoError(t, err)
				} else {
					require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				}
			}
			own := errors.New("own")
			err := do(ctx, b, nil, func(context.Context) error { return own })
			require.Equal(t, own, err, "fn's error as it is")
		})
	}
}

// A func that hangs and heeds nothing keeps its lock for MaxHold.
func TestDo_MaxHold(t *testing.T) {
	t.Parallel()
	for name, do := range eachDo() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, _ := pair(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
			defer cancel()
			own := errors.New("own")
			err := do(ctx, a, &pgbaton.LockOpts{MaxHold: 2 * time.Second}, func(held context.Context) error {
				require.NoError(t, held.Err())
				require.NoError(t, do(ctx, b, nil, func(context.Context) error {
					require.Error(t, held.Err(), "told before it is given to others")
					require.ErrorIs(t, context.Cause(held), pgbaton.ErrLost)
					require.Equal(t, "held too long", pgbaton.LossReasonOf(context.Cause(held)))
					return nil
				}))
				require.NoError(t, do(ctx, a, nil, func(context.Context) error { return nil }), "of the same process too")
				return own
			})
			require.ErrorIs(t, err, pgbaton.ErrLost)
			require.ErrorIs(t, err, own)
			require.Equal(t, "held too long", pgbaton.LossReasonOf(err))
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// Config.MaxHold is for whatever the client acquires, and a released lock is not lost afterwards.
func TestConfig_MaxHold(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	_, b, dsn := pair(t)
	client := testclient.New(t, dsn, &pgbaton.Config{MaxHold: 2 * time.Second})
	key := pgbaton.ID(1)
	lock, err := client.Acquire(ctx, key)
	require.NoError(t, err)
	early, err := client.Acquire(ctx, pgbaton.ID(2))
	require.NoError(t, err)
	require.NoError(t, early.Release(ctx))
	set, err := client.AcquireAll(ctx, pgbaton.ID(3), pgbaton.ID(4))
	require.NoError(t, err)
	s, err := client.Semaphore(ctx, "most", 1)
	require.NoError(t, err)
	permit, err := s.Acquire(ctx, 1)
	require.NoError(t, err)

	next, err := b.Acquire(ctx, key)
	require.NoError(t, err)
	soon(t, lock.Done())
	for what, held := range map[string]interface {
		Done() <-chan struct{}
		Err() error
		Release(ctx context.Context) error
	}{"lock": lock, "set": set, "permit": permit} {
		soon(t, held.Done())
		require.Equal(t, "held too long", pgbaton.LossReasonOf(held.Err()), what)
		require.ErrorIs(t, held.Release(ctx), pgbaton.ErrLost, what)
		require.ErrorIs(t, held.Release(ctx), pgbaton.ErrLost, what)
	}
	require.ErrorIs(t, early.Err(), pgbaton.ErrNotHeld)
	require.NoError(t, next.Release(ctx))
	all, err := b.AcquireAll(ctx, pgbaton.ID(1), pgbaton.ID(2), pgbaton.ID(3), pgbaton.ID(4))
	require.NoError(t, err)
	require.NoError(t, all.Release(ctx))
	again, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	require.NoError(t, again.Release(ctx))

	// A call's own bound goes before.
	require.NoError(t, client.DoWith(ctx, key, &pgbaton.LockOpts{MaxHold: time.Hour}, func(ctx context.Context, _ *pgbaton.Lock) error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(2500 * time.Millisecond):
			return nil
		}
	}))
}

func TestDo_RefusesWhatACallHasNoUseFor(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, _, _ := pair(t)
	never := func(context.Context) error { panic("refused") }
	for name, do := range eachDo() {
		for text, opts := range map[string]pgbaton.LockOpts{
			"LockOpts.Wait is":    {Wait: -2},
			"LockOpts.MaxHold is": {MaxHold: -1},
			"LockOpts.Fence":      {Fence: true},
			"LockOpts.Tx":         {Tx: pgbaton.TxOpts{ReadOnly: true}},
		} {
			require.ErrorContains(t, do(ctx, a, &opts, never), text, name)
		}
		if name != "DoWith" {
			require.ErrorContains(t, do(ctx, a, &pgbaton.LockOpts{Shared: true}, never), "LockOpts.Shared", name)
		}
	}
	require.NoError(t, a.DoWith(ctx, pgbaton.ID(1), &pgbaton.LockOpts{Shared: true}, func(ctx context.Context, _ *pgbaton.Lock) error {
		return a.DoWith(ctx, pgbaton.ID(1), &pgbaton.LockOpts{Shared: true, Wait: pgbaton.NoWait}, func(context.Context, *pgbaton.Lock) error { return nil })
	}))
}
