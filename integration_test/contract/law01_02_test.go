package contract

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 1: of a key there is one exclusive holder, or any number of shared ones; of a semaphore no more permits than its
// capacity; of a name one leader, and one run in a window.
func TestLaw1_Exclusion(t *testing.T) { run(t, 1, exclusion) }

func exclusion(s *site) {
	clients := s.clients(3)
	w := newWatch()
	var group sync.WaitGroup
	for i := range 9 {
		random := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // no secret
		group.Go(func() {
			for range testkit.Rounds(40) {
				s.something(w, clients[i%len(clients)], random)
			}
		})
	}
	for _, client := range clients {
		group.Go(func() { s.terms(w, client) })
	}
	group.Wait()
	s.reentrance(clients[0], clients[1])
	s.runs(clients)
	grants, err := w.judge()
	require.NoError(s.t, err)
	require.Positive(s.t, grants)
}

// something takes a key, a set or permits, in one of the ways, for a moment.
func (s *site) something(w *watch, client *pgbaton.Client, random *rand.Rand) {
	name := fmt.Sprint("key/", random.IntN(3))
	key := pgbaton.Name(name)
	dwell := func() { time.Sleep(time.Duration(random.IntN(1500)) * time.Microsecond) }
	var err error
	switch random.IntN(8) {
	case 0:
		err = s.watched(w, name, false, dwell, func(ctx context.Context) (*pgbaton.Lock, error) { return client.TryAcquire(ctx, key) })
		if errors.Is(err, pgbaton.ErrNotAcquired) {
			err = nil
		}
	case 1, 2:
		err = s.watched(w, name, true, dwell, func(ctx context.Context) (*pgbaton.Lock, error) { return client.AcquireShared(ctx, key) })
	case 3:
		err = s.set(w, client, dwell)
	case 4, 5:
		err = s.permits(w, client, 1+random.IntN(2), dwell)
	default:
		err = s.watched(w, name, false, dwell, func(ctx context.Context) (*pgbaton.Lock, error) { return client.Acquire(ctx, key) })
	}
	if err != nil && !s.cut(err) {
		s.t.Error(err)
	}
}

// watched takes a lock once, and holds it for a moment.
func (s *site) watched(w *watch, name string, shared bool, dwell func(), acquire func(context.Context) (*pgbaton.Lock, error)) error {
	ctx, cancel := s.patient()
	defer cancel()
	s.ops.Add(2)
	lock, err := acquire(ctx)
	if err != nil {
		return err
	}
	return w.lock(s.ctx, name, shared, lock, dwell)
}

func (s *site) set(w *watch, client *pgbaton.Client, dwell func()) error {
	ctx, cancel := s.patient()
	defer cancel()
	s.ops.Add(2)
	names := []string{"key/2", "key/0"}
	set, err := client.AcquireAll(ctx, pgbaton.Name(names[0]), pgbaton.Name(names[1]))
	if err != nil {
		return err
	}
	holds := make([]*hold, len(names))
	for i, name := range names {
		holds[i] = w.enter(name, all, all, set.Lock(pgbaton.Name(name)).Token())
	}
	dwell()
	var once sync.Once
	release := func() error {
		once.Do(func() { err = set.Release(s.ctx) })
		return err
	}
	return errors.Join(w.leave(holds[0], func() error { return w.leave(holds[1], release) }))
}

// capacity is that of the semaphore.
const capacity = 3

func (s *site) permits(w *watch, client *pgbaton.Client, n int, dwell func()) error {
	ctx, cancel := s.patient()
	defer cancel()
	s.ops.Add(3)
	semaphore, err := client.Semaphore(ctx, "semaphore", capacity)
	if err != nil {
		return err
	}
	permit, err := semaphore.Acquire(ctx, n)
	if err != nil {
		return err
	}
	h := w.enter("semaphore", n, capacity, permit.Token())
	dwell()
	return w.leave(h, func() error { return permit.Release(s.ctx) })
}

// terms leads for a few short terms.
func (s *site) terms(w *watch, client *pgbaton.Client) {
	ctx, cancel := context.WithTimeout(s.ctx, testkit.Length(3*time.Second))
	defer cancel()
	s.ops.Add(1)
	err := client.Lead(ctx, "leader", func(ctx context.Context, term *pgbaton.Lock) error {
		s.ops.Add(1)
		h := w.enter("leader", all, all, term.Token())
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		return w.leave(h, func() error { return term.Release(context.WithoutCancel(ctx)) })
	})
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !s.cut(err) {
		s.t.Error(err)
	}
}

// reentrance makes sure that a lock is not granted again, neither to the client that has it nor to another one.
func (s *site) reentrance(one, two *pgbaton.Client) {
	s.t.Helper()
	key := pgbaton.ID(1)
	lock := s.acquire(one, key)
	for _, client := range []*pgbaton.Client{one, two} {
		s.ops.Add(2)
		_, err := client.TryAcquire(s.ctx, key)
		if !s.sudden || lock.Err() == nil {
			require.ErrorIs(s.t, err, pgbaton.ErrNotAcquired)
		}
		_, err = client.TryAcquireShared(s.ctx, key)
		if !s.sudden || lock.Err() == nil {
			require.ErrorIs(s.t, err, pgbaton.ErrNotAcquired)
		}
	}
	other := s.acquire(two, pgbaton.Pair(0, 1)) // a space of keys of its own
	s.release(other)
	s.release(lock)
}

// runs has all clients run what is due once.
func (s *site) runs(clients []*pgbaton.Client) {
	s.t.Helper()
	var ran atomic.Int64
	var group sync.WaitGroup
	for _, client := range clients {
		for range 3 {
			group.Go(func() {
				ctx, cancel := s.patient()
				defer cancel()
				s.ops.Add(1)
				err := client.Once(ctx, "once", time.Hour, func(context.Context, *pgbaton.Lock) error {
					ran.Add(1)
					return nil
				})
				if err != nil && !errors.Is(err, pgbaton.ErrNotAcquired) && !s.cut(err) {
					s.t.Error(err)
				}
			})
		}
	}
	group.Wait()
	if s.sudden { // the record of the run may be one of which nobody knows whether it is there
		require.LessOrEqual(s.t, ran.Load(), int64(1))
		return
	}
	require.Equal(s.t, int64(1), ran.Load())
}

// Law 2: tokens rise from grant to grant of a key, by whichever client and also where it is handed over within one, and a
// transaction that shows an old one fails when a newer one was seen.
func TestLaw2_Tokens(t *testing.T) { run(t, 2, tokens) }

func tokens(s *site) {
	clients := s.clients(2)
	key := pgbaton.Name("key")
	var newest pgbaton.Token
	rises := func(lock *pgbaton.Lock) {
		s.t.Helper()
		require.Greater(s.t, lock.Token(), newest)
		require.Less(s.t, lock.Token(), pgbaton.Token(1<<53))
		newest = lock.Token()
	}
	for i := range testkit.Rounds(30) {
		client := clients[i%len(clients)]
		lock := s.acquire(client, key)
		rises(lock)
		next := make(chan *pgbaton.Lock, 1)
		go func() { // handed over within the client, unless it comes late
			defer close(next)
			after, err := s.take(func(ctx context.Context) (*pgbaton.Lock, error) { return client.Acquire(ctx, key) })
			if err != nil {
				s.t.Error(err)
				return
			}
			next <- after
		}()
		s.release(lock)
		lock, ok := <-next
		require.True(s.t, ok)
		rises(lock)
		s.release(lock)
		shared, err := s.take(func(ctx context.Context) (*pgbaton.Lock, error) { return clients[(i+1)%2].AcquireShared(ctx, key) })
		require.NoError(s.t, err)
		rises(shared)
		s.release(shared)
	}
	s.fenced(clients[0], clients[1], key)
}

// fenced has a holder's transaction fail when the next holder has written.
func (s *site) fenced(one, two *pgbaton.Client, key pgbaton.Key) {
	s.t.Helper()
	pool := s.pool()
	write := func(token pgbaton.Token) error {
		s.ops.Add(1)
		return pgbaton.InTx(s.ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error { return pgbaton.Fence(ctx, tx, "resource", token) })
	}
	old := s.acquire(one, key)
	require.NoError(s.t, write(old.Token()))
	s.release(old)
	held := s.acquire(two, key)
	require.NoError(s.t, write(held.Token()))
	require.ErrorIs(s.t, write(old.Token()), pgbaton.ErrStaleToken)
	err := pgbaton.InTx(s.ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error { return held.Assert(ctx, tx) })
	if err != nil {
		require.True(s.t, s.cut(err), "%v", err)
	}
	s.release(held)
}
