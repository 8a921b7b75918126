package pgbaton_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

func TestSemaphore_Open(t *testing.T) {
	t.Parallel()
	client := newClient(t, migratedDatabase(t), nil)
	ctx := t.Context()
	_, err := client.OpenSemaphore(ctx, "s")
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	for _, capacity := range []int{0, -1, 10_001} {
		_, err = client.Semaphore(ctx, "s", capacity)
		require.ErrorContains(t, err, "the capacity is")
	}
	for _, name := range []string{"", "a\x00b", "\xff"} {
		_, err = client.Semaphore(ctx, name, 1)
		require.ErrorContains(t, err, "semaphore name")
	}
	s, err := client.Semaphore(ctx, "s", 3)
	require.NoError(t, err)
	require.Equal(t, "s", s.Name())
	_, err = client.Semaphore(ctx, "s", 4)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	require.ErrorContains(t, err, "3")
	require.ErrorContains(t, err, "4")
	s, err = client.OpenSemaphore(ctx, "s")
	require.NoError(t, err)
	free, err := s.Available(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, free)
}

func TestSemaphore_AcquireRelease(t *testing.T) {
	t.Parallel()
	client := newClient(t, migratedDatabase(t), &pgbaton.Config{Name: "me"})
	ctx := t.Context()
	s, err := client.Semaphore(ctx, "s", 3)
	require.NoError(t, err)

	one, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	two, err := s.TryAcquire(ctx, 2)
	require.NoError(t, err)
	require.Equal(t, 2, two.N())
	require.Greater(t, two.Token(), one.Token())
	_, err = s.TryAcquire(ctx, 1)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	holders, err := s.Holders(ctx)
	require.NoError(t, err)
	require.Len(t, holders, 2)
	require.Equal(t, "me", holders[1].Name)
	require.Equal(t, 2, holders[1].Permits)
	require.Equal(t, two.Token(), holders[1].Token)
	require.Positive(t, holders[1].ExpiresIn)

	permitCtx := two.Context()
	require.NoError(t, two.Err())
	require.NoError(t, two.Release(ctx))
	require.NoError(t, two.Release(ctx), "twice")
	<-two.Done()
	<-permitCtx.Done()
	require.ErrorIs(t, two.Err(), pgbaton.ErrNotHeld)
	require.ErrorIs(t, context.Cause(permitCtx), pgbaton.ErrNotHeld)

	free, err := s.Available(ctx)
	require.NoError(t, err)
	require.Equal(t, 2, free)
	_, err = s.TryAcquire(ctx, 4)
	require.ErrorIs(t, err, pgbaton.ErrOverCapacity)
	_, err = s.Acquire(ctx, 0)
	require.ErrorContains(t, err, "least is 1")
	require.NoError(t, one.Release(ctx))
}

// Permits of two clients: peak concurrency, and nobody is left behind.
func TestSemaphore_Crowd(t *testing.T) {
	t.Parallel()
	const capacity, goroutines, rounds = 3, 20, 40
	dsn := migratedDatabase(t)
	first, second := newClient(t, dsn, nil), newClient(t, dsn, nil)
	ctx := t.Context()
	var held, peak atomic.Int64
	var wg sync.WaitGroup
	for i := range goroutines {
		client := []*pgbaton.Client{first, second}[i%2]
		s, err := client.Semaphore(ctx, "s", capacity)
		require.NoError(t, err)
		wg.Go(func() {
			for r := range rounds {
				n := 1 + (i+r)%capacity
				p, err := s.Acquire(ctx, n)
				if err != nil {
					t.Error(err)
					return
				}
				now := held.Add(int64(n))
				for old := peak.Load(); now > old && !peak.CompareAndSwap(old, now); old = peak.Load() {
				}
				held.Add(int64(-n))
				if err := p.Release(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, peak.Load(), int64(capacity))
	s, err := first.OpenSemaphore(ctx, "s")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		free, err := s.Available(ctx)
		return err == nil && free == capacity
	}, 5*time.Second, 10*time.Millisecond)
}

func TestSemaphore_WaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	client := newClient(t, migratedDatabase(t), nil)
	ctx := t.Context()
	s, err := client.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	p, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	reason := errors.New("enough")
	short, cancel := context.WithTimeoutCause(ctx, 50*time.Millisecond, reason)
	defer cancel()
	start := time.Now()
	_, err = s.Acquire(short, 1)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, reason)
	require.Less(t, time.Since(start), time.Second)
	require.NoError(t, p.Release(ctx))
	p, err = s.TryAcquire(ctx, 1)
	if err != nil { // the head of the line may be on its way from the gate
		time.Sleep(100 * time.Millisecond)
		p, err = s.TryAcquire(ctx, 1)
	}
	require.NoError(t, err)
	require.NoError(t, p.Release(ctx))
}
