package contract

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 7: a client has no more connections than it may, however much it holds and waits for, and none of the pool that it was
// given.
func TestLaw7_BoundedConnections(t *testing.T) { run(t, 7, bounded) }

func bounded(s *site) {
	const maxConns, held, waits = 3, 60, 60
	pool, counter := testkit.Counted(s.t, testkit.With(s.t, s.dsn, "pool_max_conns", "1"))
	ctx, cancel := s.patient()
	defer cancel()
	conn, err := pool.Acquire(ctx) // the caller has need of it all the while
	for err != nil && s.sudden {
		conn, err = pool.Acquire(ctx)
	}
	require.NoError(s.t, err)
	defer conn.Release()
	client, err := pgbaton.New(ctx, pool, &pgbaton.Config{MaxConns: maxConns, TTL: testkit.Patience, Engine: s.engine})
	require.NoError(s.t, err)
	other := s.open(pgbaton.Config{})
	var theirs, ours []*pgbaton.Lock
	for i := range 6 {
		theirs = append(theirs, s.acquire(other, pgbaton.Name(fmt.Sprint("their/", i))))
	}
	for i := range held {
		ours = append(ours, s.acquire(client, pgbaton.Name(fmt.Sprint("our/", i))))
	}
	semaphore, err := client.Semaphore(ctx, "semaphore", 2)
	if err != nil {
		require.True(s.t, s.cut(err), "%v", err)
	} else if permit, err := semaphore.Acquire(ctx, 2); err == nil {
		s.release(permit)
	} else {
		require.True(s.t, s.cut(err), "%v", err)
	}
	var group sync.WaitGroup
	for i := range waits {
		group.Go(func() {
			key := pgbaton.Name(fmt.Sprint("their/", i%len(theirs)))
			lock, err := s.take(func(ctx context.Context) (*pgbaton.Lock, error) { return client.Acquire(ctx, key) })
			if err == nil {
				err = lock.Release(s.ctx)
			}
			if err != nil && !s.cut(err) {
				s.t.Error(err)
			}
		})
	}
	for _, lock := range theirs {
		s.release(lock)
	}
	group.Wait()
	for _, lock := range ours {
		s.release(lock)
	}
	s.close(ctx, client)
	require.LessOrEqual(s.t, counter.Connections(), int64(maxConns+1), "the client's and the caller's")
	require.Equal(s.t, int64(1), pool.Stat().AcquireCount(), "the pool is the caller's")
}

// Law 8: who waits gets it, though others, in this process and in that, take the key again and again, and though
// readers overlap.
func TestLaw8_NoStarvation(t *testing.T) { run(t, 8, fair) }

func fair(s *site) {
	busy, patient := s.clients(2), s.open(pgbaton.Config{})
	for _, shared := range []bool{false, true} {
		key := pgbaton.Name(fmt.Sprint("key/", shared))
		var grants atomic.Int64
		stopped, stop := context.WithCancel(s.ctx)
		var group sync.WaitGroup
		for i := range 6 {
			group.Go(func() { s.hog(stopped, busy[i%len(busy)], key, shared, &grants) })
		}
		testkit.Eventually(s.t, "the others are at work", func() bool { return grants.Load() > 6 })
		for range testkit.Rounds(5) {
			before := grants.Load()
			lock := s.acquire(patient, key)
			testkit.Figure(s.t, "%s: overtaken %d times, readers %v", s.name, grants.Load()-before, shared)
			s.release(lock)
		}
		stop()
		group.Wait()
	}
}

// hog takes a key again and again until it is stopped.
func (s *site) hog(ctx context.Context, client *pgbaton.Client, key pgbaton.Key, shared bool, grants *atomic.Int64) {
	acquire := client.Acquire
	if shared {
		acquire = client.AcquireShared
	}
	for ctx.Err() == nil {
		s.ops.Add(2)
		lock, err := acquire(ctx, key)
		if err == nil {
			grants.Add(1)
			time.Sleep(time.Millisecond)
			err = lock.Release(s.ctx)
		}
		if err != nil && ctx.Err() == nil && !s.cut(err) {
			s.t.Error(err)
			return
		}
	}
}

// Law 9: many may wait, within law 7 and without many statements. Nothing of the server's waits for them.
func TestLaw9_WaitingIsCheap(t *testing.T) { run(t, 9, cheap) }

func cheap(s *site) {
	keys, each := testkit.Rounds(200), 10
	holder := s.open(pgbaton.Config{})
	pool, counter := testkit.Counted(s.t, s.dsn)
	ctx, cancel := s.patient()
	defer cancel()
	client, err := pgbaton.New(ctx, pool, &pgbaton.Config{TTL: testkit.Patience, Engine: s.engine})
	require.NoError(s.t, err)
	held := make([]*pgbaton.Lock, keys)
	name := func(i int) pgbaton.Key { return pgbaton.Name(fmt.Sprint("crowd/", i)) }
	for i := range held {
		held[i] = s.acquire(holder, name(i))
	}
	var group sync.WaitGroup
	var served atomic.Int64
	for i := range keys * each {
		group.Go(func() {
			lock, err := s.take(func(ctx context.Context) (*pgbaton.Lock, error) { return client.Acquire(ctx, name(i%keys)) })
			if err == nil {
				served.Add(1)
				err = lock.Release(s.ctx)
			}
			if err != nil && !s.cut(err) {
				s.t.Error(err)
			}
		})
	}
	time.Sleep(time.Second) // they have begun to wait
	before, began := counter.Statements(), time.Now()
	time.Sleep(testkit.Length(3 * time.Second))
	perSecond := float64(counter.Statements()-before) / time.Since(began).Seconds()
	testkit.Figure(s.t, "%s: %d waiters on %d keys: %.1f statements a second (target 20)", s.name, keys*each, keys, perSecond)
	if !s.sudden {
		require.Zero(s.t, served.Load(), "all keys are held elsewhere")
	}
	if !s.foreign {
		testkit.Exec(s.t, s.control, "CREATE TABLE indexed (n int)")
		testkit.Exec(s.t, s.control, "CREATE INDEX CONCURRENTLY ON indexed (n)") // it waits for every older snapshot of the database
	}
	for _, lock := range held {
		s.release(lock)
	}
	group.Wait()
	require.Equal(s.t, int64(keys*each), served.Load())
	require.LessOrEqual(s.t, counter.Connections(), int64(4), "the default")
	s.close(ctx, client)
}

// Law 10: a client holds as many keys as it may, and is told when it wants more.
func TestLaw10_NoDamage(t *testing.T) { run(t, 10, limited) }

func limited(s *site) {
	const most = 5
	client, other := s.open(pgbaton.Config{MaxHeld: most}), s.open(pgbaton.Config{})
	var locks []*pgbaton.Lock
	for i := range most {
		locks = append(locks, s.acquire(client, pgbaton.ID(int64(i))))
	}
	s.ops.Add(3)
	_, err := client.Acquire(s.ctx, pgbaton.ID(most))
	require.True(s.t, errors.Is(err, pgbaton.ErrTooManyLocks) || s.sudden && err == nil, "%v", err)
	if s.sudden {
		return // one of them may be lost, and then there is room
	}
	_, err = client.TryAcquire(s.ctx, pgbaton.ID(most))
	require.ErrorIs(s.t, err, pgbaton.ErrTooManyLocks)
	_, err = client.AcquireAll(s.ctx, pgbaton.ID(most), pgbaton.ID(most+1))
	require.ErrorIs(s.t, err, pgbaton.ErrTooManyLocks)
	s.release(s.acquire(other, pgbaton.ID(most))) // nobody has it
	for _, lock := range locks {
		require.NoError(s.t, lock.Err())
	}
	s.release(locks[0])
	locks[0] = s.acquire(client, pgbaton.ID(most))
	for _, lock := range locks {
		s.release(lock)
	}
}
