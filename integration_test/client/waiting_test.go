package client

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// notHeld lets a goroutine wait in the context of a lock that says that it holds x, too, which is not so: for z, whose
// holder waits for x. There is no cycle, and neither wait ends before its time.
func notHeld(t *testing.T, waiter, client *pgbaton.Client, inner *pgbaton.Lock, x, z pgbaton.Key) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	third, err := client.Acquire(ctx, x)
	require.NoError(t, err)
	lock, err := client.Acquire(ctx, z)
	require.NoError(t, err)
	timer := time.AfterFunc(2500*time.Millisecond, func() { _ = third.Release(ctx) })
	defer timer.Stop()
	var wg sync.WaitGroup
	acquire := func(within context.Context, c *pgbaton.Client, key pgbaton.Key, then func()) {
		wg.Go(func() {
			got, err := c.Acquire(within, key)
			if err == nil {
				err = got.Release(ctx)
			}
			if err != nil {
				t.Error(err)
			}
			then()
		})
	}
	acquire(lock.Context(), client, x, func() { _ = lock.Release(ctx) })
	acquire(inner.Context(), waiter, z, func() {})
	wg.Wait()
}

func TestDeadlock_WhatIsNotHeldDoesNotCount(t *testing.T) {
	t.Parallel()
	a, b, _ := pair(t)
	c, d, _ := pair(t)
	ctx := testkit.Context(t)
	t.Run("Released", func(t *testing.T) {
		t.Parallel()
		x, y, z := ringKey(t.Name(), 1), ringKey(t.Name(), 2), ringKey(t.Name(), 3)
		outer, err := a.Acquire(ctx, x)
		require.NoError(t, err)
		inner, err := a.Acquire(outer.Context(), y)
		require.NoError(t, err)
		require.NoError(t, outer.Release(ctx))
		notHeld(t, a, b, inner, x, z)
		require.NoError(t, inner.Release(ctx))
	})
	t.Run("OfAnotherDatabase", func(t *testing.T) {
		t.Parallel()
		x, y, z := ringKey(t.Name(), 1), ringKey(t.Name(), 2), ringKey(t.Name(), 3)
		there, err := c.Acquire(ctx, x)
		require.NoError(t, err)
		here, err := a.Acquire(there.Context(), y)
		require.NoError(t, err)
		notHeld(t, a, b, here, x, z)
		require.NoError(t, here.Release(ctx))
		require.NoError(t, there.Release(ctx))
	})
	t.Run("OfAnotherClientOfTheDatabaseCounts", func(t *testing.T) {
		t.Parallel()
		x, y := ringKey(t.Name(), 1), ringKey(t.Name(), 2)
		first, err := c.Acquire(ctx, x)
		require.NoError(t, err)
		second, err := d.Acquire(ctx, y)
		require.NoError(t, err)
		outcomes := make([]outcome, 2)
		var wg sync.WaitGroup
		for i, lock := range []*pgbaton.Lock{first, second} {
			wg.Go(func() {
				began := time.Now()
				key, client := []pgbaton.Key{y, x}[i], []*pgbaton.Client{d, c}[i] // not by which it holds the other
				bounded, cancel := context.WithTimeout(lock.Context(), testkit.Patience)
				defer cancel()
				got, err := client.Acquire(bounded, key)
				outcomes[i] = outcome{err, time.Since(began)}
				if err == nil {
					_ = got.Release(ctx)
				}
				_ = lock.Release(ctx)
			})
		}
		wg.Wait()
		victim(t, outcomes)
	})
}

// A cycle is found also where thousands wait, each in a lock's context, for a key that is held elsewhere.
func TestDeadlock_AmongManyWaits(t *testing.T) {
	t.Parallel()
	crowd := testkit.Rounds(2500)
	a, b, dsn := pair(t)
	conn := testkit.Connect(t, dsn)
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	busy, err := b.Acquire(ctx, pgbaton.Name("busy"))
	require.NoError(t, err)
	outer, err := a.Acquire(ctx, pgbaton.Name("outer"))
	require.NoError(t, err)
	inner, stop := context.WithCancel(outer.Context())
	var wg sync.WaitGroup
	for range crowd {
		wg.Go(func() {
			if _, err := a.Acquire(inner, pgbaton.Name("busy")); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	rows := func() int {
		return testkit.Value[int](t, conn, "SELECT count(*)::int FROM pgbaton.registry WHERE kind = 'watched'")
	}
	require.Eventually(t, func() bool { return rows() == crowd }, testkit.Patience, 50*time.Millisecond)
	found := 0
	for _, o := range ring(t, t.Name(), 2, a, b) {
		if o.err != nil {
			require.ErrorIs(t, o.err, pgbaton.ErrDeadlock)
			testkit.Figure(t, "among %d waits a deadlock was found after %v", crowd, o.took)
			found++
		}
	}
	require.Equal(t, 1, found)
	require.LessOrEqual(t, testkit.Value[int](t, conn, "SELECT last_value::int FROM pgbaton.registry_id_seq"), crowd+50, "each once, and the locks")
	stop()
	wg.Wait()
	require.Eventually(t, func() bool { return rows() == 0 }, testkit.Patience, 50*time.Millisecond)
	require.NoError(t, outer.Release(ctx))
	require.NoError(t, busy.Release(ctx))
}

// To say by the context what is held costs nothing when the key is free.
func TestDeadlock_AFreeKeyCostsNothing(t *testing.T) { // not parallel: it counts what the process allocates
	client := testclient.New(t, testkit.Migrated(t), nil)
	outer, err := client.Acquire(t.Context(), pgbaton.Name("outer"))
	require.NoError(t, err)
	plain, cancel := context.WithCancel(context.Background())
	defer cancel()
	const runs = 300
	allocations := func(ctx context.Context) float64 { // of a run, not rounded, as testing.AllocsPerRun would
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			lock, err := client.Acquire(ctx, pgbaton.Name("inner"))
			if err == nil {
				err = lock.Release(ctx)
			}
			if err != nil {
				t.Error(err)
			}
		}
		runtime.ReadMemStats(&after)
		return float64(after.Mallocs-before.Mallocs) / runs
	}
	allocations(plain) // what is kept is made
	free, within := allocations(plain), allocations(outer.Context())
	for range 8 { // the least of each, because something may go on besides
		free, within = min(free, allocations(plain)), min(within, allocations(outer.Context()))
	}
	// The race detector has a pool forget at random, so there is a fraction of an allocation between two runs of the same.
	require.Less(t, within, free+0.5)
	require.NoError(t, outer.Release(t.Context()))
}
