package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func TestSemaphore_Open(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), nil)
	ctx := testkit.Context(t)
	_, err := client.Semaphore(ctx, "s", 0)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	for _, capacity := range []int{-1, 10_001} {
		_, err = client.Semaphore(ctx, "s", capacity)
		require.ErrorContains(t, err, "the capacity is")
	}
	for _, name := range []string{"", "a\x00b", "\xff"} {
		_, err = client.Semaphore(ctx, name, 1)
		require.ErrorContains(t, err, "semaphore name")
	}
	_, err = client.Semaphore(ctx, "s", 3)
	require.NoError(t, err)
	_, err = client.Semaphore(ctx, "s", 4)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	require.ErrorContains(t, err, "3")
	require.ErrorContains(t, err, "4")
	s, err := client.Semaphore(ctx, "s", 0)
	require.NoError(t, err)
	free, err := testclient.Available(ctx, s)
	require.NoError(t, err)
	require.Equal(t, 3, free)
}

func TestSemaphore_AcquireRelease(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), &pgbaton.Config{Name: "me"})
	ctx := testkit.Context(t)
	s, err := client.Semaphore(ctx, "s", 3)
	require.NoError(t, err)

	one, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	two, err := s.TryAcquire(ctx, 2)
	require.NoError(t, err)
	require.Greater(t, two.Token(), one.Token())
	_, err = s.TryAcquire(ctx, 1)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	holders, err := testclient.Holders(ctx, s)
	require.NoError(t, err)
	require.Len(t, holders, 2)
	require.Equal(t, "me", holders[1].Client)
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

	free, err := testclient.Available(ctx, s)
	require.NoError(t, err)
	require.Equal(t, 2, free)
	_, err = s.TryAcquire(ctx, 4)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	_, err = s.Acquire(ctx, 0)
	require.ErrorContains(t, err, "least is 1")
	require.NoError(t, one.Release(ctx))
}

// Permits of two clients: peak concurrency, and nobody is left behind.
func TestSemaphore_Crowd(t *testing.T) {
	t.Parallel()
	const capacity, goroutines = 3, 20
	rounds := testkit.Rounds(40)
	dsn := testkit.Migrated(t)
	first, second := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	ctx := testkit.Context(t)
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
	s, err := first.Semaphore(ctx, "s", 0)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		free, err := testclient.Available(ctx, s)
		return err == nil && free == capacity
	}, testkit.Patience, 10*time.Millisecond)
}

func TestSemaphore_WaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), nil)
	ctx := testkit.Context(t)
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
	testkit.Figure(t, "a wait for a permit returned %v after its context had ended", time.Since(start)-50*time.Millisecond)
	require.NoError(t, p.Release(ctx))
	require.Eventually(t, func() bool { // the head of the line may be on its way from the gate
		p, err = s.TryAcquire(ctx, 1)
		return err == nil
	}, testkit.Patience, time.Millisecond)
	require.NoError(t, p.Release(ctx))
}

// waitingContext tells when somebody begins to wait for its end, which one who waits for a permit does in the line.
type waitingContext struct { //nolint:containedctx // it is one
	context.Context

	waits chan struct{}
}

func (c waitingContext) Done() <-chan struct{} {
	select {
	case c.waits <- struct{}{}:
	default:
	}
	return c.Context.Done()
}

// Within a process permits are handed over in the order of arrival, without the server.
func TestSemaphore_InOrder(t *testing.T) {
	t.Parallel()
	s, _, _ := openSemaphore(t, 1, 0)
	ctx := testkit.Context(t)
	first, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	order := make(chan int, 10)
	var tokens []pgbaton.Token
	var wg sync.WaitGroup
	for i := range cap(order) {
		inLine := waitingContext{ctx, make(chan struct{}, 10)}
		wg.Go(func() {
			p, err := s.Acquire(inLine, 1)
			if err != nil {
				t.Error(err)
				return
			}
			order <- i
			tokens = append(tokens, p.Token()) // the semaphore is of one
			if err := p.Release(ctx); err != nil {
				t.Error(err)
			}
		})
		<-inLine.waits
	}
	require.NoError(t, first.Release(ctx))
	wg.Wait()
	for i := range cap(order) {
		require.Equal(t, i, <-order)
	}
	for i, token := range tokens {
		require.Greater(t, token, append([]pgbaton.Token{first.Token()}, tokens...)[i])
	}
}

// Who wants many is not passed by those who want fewer and come later, here and in another process.
func TestSemaphore_Weighted(t *testing.T) {
	t.Parallel()
	const capacity = 4
	s, dsn, _ := openSemaphore(t, capacity, 0)
	other, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), "s", capacity)
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for ctx.Err() == nil {
				p, err := []*pgbaton.Semaphore{s, other}[i%2].Acquire(ctx, 1)
				if err != nil {
					continue
				}
				time.Sleep(time.Millisecond)
				if err := p.Release(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 6 {
		start := time.Now()
		bounded, cancel := context.WithTimeout(ctx, testkit.Patience)
		p, err := []*pgbaton.Semaphore{s, other}[i%2].Acquire(bounded, capacity)
		cancel()
		require.NoError(t, err)
		testkit.Figure(t, "among waits for one permit, all %d were granted after %v", capacity, time.Since(start))
		require.NoError(t, p.Release(ctx))
	}
	stop()
	wg.Wait()
}

// Lowering a capacity takes permits from nobody, and none is granted until fewer are held.
func TestSemaphore_Resize(t *testing.T) {
	t.Parallel()
	s, dsn, _ := openSemaphore(t, 4, 0)
	ctx := testkit.Context(t)
	other, err := testclient.New(t, dsn, nil).Semaphore(ctx, "s", 4)
	require.NoError(t, err)
	var held []*pgbaton.Permit
	for range 3 {
		p, err := s.Acquire(ctx, 1)
		require.NoError(t, err)
		held = append(held, p)
	}
	require.ErrorContains(t, s.Resize(ctx, 0), "least is 1")
	tooMany := make(chan error)
	go func() {
		_, err := s.Acquire(ctx, 4)
		tooMany <- err
	}()
	time.Sleep(50 * time.Millisecond)
	require.NoError(t, s.Resize(ctx, 2))
	require.ErrorIs(t, <-tooMany, pgbaton.ErrCapacityMismatch)
	free := func() int {
		free, err := testclient.Available(ctx, other)
		require.NoError(t, err)
		return free
	}
	tryOther := func() error {
		p, err := other.TryAcquire(ctx, 1)
		if err == nil {
			held = append(held, p)
		}
		return err
	}
	require.Zero(t, free())
	require.ErrorIs(t, tryOther(), pgbaton.ErrNotAcquired)
	require.NoError(t, held[0].Release(ctx)) // two of two are held
	require.Zero(t, free())
	require.ErrorIs(t, tryOther(), pgbaton.ErrNotAcquired)
	require.NoError(t, held[1].Release(ctx))
	require.Equal(t, 1, free())
	require.Eventually(t, func() bool { return tryOther() == nil }, testkit.Patience, time.Millisecond) // others waited a moment ago
	require.ErrorIs(t, tryOther(), pgbaton.ErrNotAcquired)

	// A client that has not heard of a higher capacity can use it.
	require.NoError(t, other.Resize(ctx, 6))
	require.Equal(t, 4, free())
	p, err := s.Acquire(ctx, 4)
	require.NoError(t, err)
	require.NoError(t, p.Release(ctx))
	_, err = s.Acquire(ctx, 7)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
	for _, p := range held[2:] {
		require.NoError(t, p.Release(ctx))
	}
	require.Equal(t, 6, free())
}

// Do runs with a context that ends with the permit.
func TestSemaphore_Do(t *testing.T) {
	t.Parallel()
	s, _, admin := openSemaphore(t, 2, 0)
	err := s.Do(t.Context(), 1, nil, func(ctx context.Context, p *pgbaton.Permit) error {
		require.NoError(t, p.Err())
		terminateHolders(t, admin)
		<-ctx.Done()
		return context.Cause(ctx)
	})
	require.ErrorIs(t, err, pgbaton.ErrLost)
	_ = s.Do(t.Context(), 2, nil, func(context.Context, *pgbaton.Permit) error { return nil })
	require.NoError(t, s.Do(t.Context(), 2, nil, func(context.Context, *pgbaton.Permit) error { return nil }))
}

// A semaphore that was removed is not there any more, and says so.
func TestSemaphore_Removed(t *testing.T) {
	t.Parallel()
	s, dsn, _ := openSemaphore(t, 2, 0)
	testkit.Run(t, dsn, "DELETE FROM pgbaton.semaphore")
	_, err := s.Acquire(t.Context(), 1)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	_, err = testclient.Available(t.Context(), s)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	_, err = testclient.Holders(t.Context(), s)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	require.ErrorIs(t, s.Resize(t.Context(), 3), pgbaton.ErrNotFound)
}

// A call whose context has ended does nothing.
func TestSemaphore_EndedContext(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	s, dsn, _ := openSemaphore(t, 2, 0)
	client := testclient.New(t, dsn, nil)
	require.ErrorIs(t, s.Resize(ended, 4), context.Canceled)
	_, err := client.Semaphore(ended, "other", 1)
	require.ErrorIs(t, err, context.Canceled)
	_, err = testclient.Available(ended, s)
	require.ErrorIs(t, err, context.Canceled)
	_, err = testclient.Holders(ended, s)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, client.RequestResign(ended, "x"), context.Canceled)

	capacity, err := testclient.Capacity(ctx, s)
	require.NoError(t, err)
	require.Equal(t, 2, capacity)
	_, err = client.Semaphore(ctx, "other", 0)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
}

// A try is not refused because another one wants more than there is.
func TestSemaphore_TriesDoNotHinderOneAnother(t *testing.T) {
	t.Parallel()
	s, _, _ := openSemaphore(t, 2, 0)
	for range testkit.Rounds(100) {
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := s.TryAcquire(t.Context(), 3); !errors.Is(err, pgbaton.ErrCapacityMismatch) && !errors.Is(err, pgbaton.ErrNotAcquired) {
				t.Error(err)
			}
		})
		time.Sleep(20 * time.Microsecond)
		p, err := s.TryAcquire(t.Context(), 1)
		require.NoError(t, err)
		require.NoError(t, p.Release(t.Context()))
		wg.Wait()
	}
}
