package contract

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 3: an acquire whose context ends at whatever moment holds nothing and waits nowhere, and no grant gets lost.
func TestLaw3_NothingIsLeftBehind(t *testing.T) { run(t, 3, nothingLeft) }

func nothingLeft(s *site) {
	one, two := s.open(pgbaton.Config{}), s.open(pgbaton.Config{})
	var late time.Duration
	for _, held := range []*pgbaton.Client{nil, one, two} { // by nobody, in the process, by another one
		key := pgbaton.Name(fmt.Sprint("key/", held == one, held == two))
		ended := 0
		for round := range testkit.Rounds(100) {
			var lock *pgbaton.Lock
			if held != nil {
				lock = s.acquire(held, key)
			}
			ended += s.hasty(one, key, time.Duration(round%50)*moment(s), lock, &late)
		}
		require.Positive(s.t, ended, "no context has ended before a grant")
		for _, client := range []*pgbaton.Client{two, one} {
			s.release(s.acquire(client, key))
		}
	}
	testkit.Figure(s.t, "%s: error after the context's end at the latest %v", s.name, late)
}

// moment is the step in which contexts end later and later: so that their ends are around the grants, also where those take long.
func moment(s *site) time.Duration {
	return 30*time.Microsecond + s.habits.Delay/20
}

// hasty acquires with a context that ends soon, while what others hold is released. It returns how many contexts ended first.
func (s *site) hasty(client *pgbaton.Client, key pgbaton.Key, after time.Duration, held *pgbaton.Lock, late *time.Duration) int {
	s.t.Helper()
	ends := time.Now().Add(after)
	ctx, cancel := context.WithDeadline(s.ctx, ends)
	defer cancel()
	released := make(chan struct{})
	go func() {
		defer close(released)
		if held != nil {
			time.Sleep(after / 2)
			if err := held.Release(s.ctx); err != nil && !s.cut(err) {
				s.t.Error(err)
			}
		}
	}()
	s.ops.Add(2)
	lock, err := client.Acquire(ctx, key)
	defer func() { <-released }()
	if err == nil {
		s.release(lock)
		return 0
	}
	*late = max(*late, time.Since(ends))
	require.ErrorIs(s.t, err, pgbaton.ErrNotAcquired)
	if !s.sudden {
		require.ErrorIs(s.t, err, context.DeadlineExceeded)
	}
	return 1
}

// Law 4: a release that returns nil was of a lock that was held until then; one of a lost lock says so; each may be repeated.
func TestLaw4_ReleaseTellsTheTruth(t *testing.T) { run(t, 4, truth) }

func truth(s *site) {
	client, other := s.open(pgbaton.Config{TTL: short}), s.open(pgbaton.Config{TTL: short})
	ended, cancel := context.WithCancel(s.ctx)
	cancel()
	for range testkit.Rounds(20) {
		lock := s.acquire(client, pgbaton.Name("key"))
		s.ops.Add(2)
		err := lock.Release(ended)
		require.True(s.t, err == nil || errors.Is(err, pgbaton.ErrLost), "%v", err)
		require.Equal(s.t, err, lock.Release(s.ctx), "a second call")
		require.Error(s.t, lock.Err())
		<-lock.Done()
		if err != nil {
			require.True(s.t, s.sudden || crowded(err), "%v", err)
		}
		s.release(s.acquire(other, pgbaton.Name("key")))
	}
	var locks []*pgbaton.Lock
	for i := range 3 {
		locks = append(locks, s.acquire(client, pgbaton.Name(fmt.Sprint("key/", i))))
	}
	s.lose()
	for _, lock := range locks {
		s.ops.Add(2)
		require.ErrorIs(s.t, lock.Release(s.ctx), pgbaton.ErrLost)
		require.ErrorIs(s.t, lock.Release(s.ctx), pgbaton.ErrLost)
	}
	for i := range locks { // they are others' to have
		s.release(s.acquire(other, pgbaton.Name(fmt.Sprint("key/", i))))
	}

	cut, network := s.network(pgbaton.Config{TTL: short})
	lock := s.acquire(cut, pgbaton.Name("silent"))
	network.Stall(true)
	s.ops.Add(1)
	began := time.Now()
	require.ErrorIs(s.t, lock.Release(s.ctx), pgbaton.ErrLost, "nobody has said that it was held")
	testkit.Figure(s.t, "%s: a release on a silent network took %v of a TTL of %v", s.name, time.Since(began), short)
	network.Stall(false)
	s.release(s.acquire(other, pgbaton.Name("silent")))
}

// short is a TTL whose end a test may wait for.
const short = 3 * time.Second

// crowded reports whether a loss is that of a machine on which everything stood still for the most of a [short] TTL.
func crowded(err error) bool {
	reason := pgbaton.LossReasonOf(err)
	return reason == "lease expired" || reason == "connection lost"
}

// Law 5: a holder is told of its loss, by Done, by its context and by Err, with a reason; on a silent network before
// anybody else is granted the key.
func TestLaw5_TheHolderIsTold(t *testing.T) { run(t, 5, told) }

func told(s *site) {
	client := s.open(pgbaton.Config{TTL: short})
	for i := range testkit.Rounds(5) {
		lock := s.acquire(client, pgbaton.Name(fmt.Sprint("key/", i)))
		shared, err := s.take(func(ctx context.Context) (*pgbaton.Lock, error) {
			return client.AcquireShared(ctx, pgbaton.Name(fmt.Sprint("shared/", i)))
		})
		require.NoError(s.t, err)
		s.lose()
		began := time.Now()
		for _, lock := range []*pgbaton.Lock{lock, shared} {
			s.mustBeTold(lock)
		}
		testkit.Figure(s.t, "%s: told after %v", s.name, time.Since(began))
	}
	other := s.open(pgbaton.Config{TTL: short})
	silent, network := s.network(pgbaton.Config{TTL: short})
	for i := range testkit.Rounds(2) {
		key := pgbaton.Name(fmt.Sprint("silent/", i))
		lock := s.acquire(silent, key)
		network.Stall(true)
		next := s.acquire(other, key)
		require.Error(s.t, lock.Err(), "granted elsewhere while it was held")
		s.mustBeTold(lock)
		require.Greater(s.t, next.Token(), lock.Token())
		s.release(next)
		network.Stall(false)
		s.release(s.acquire(silent, key)) // it comes back by itself
	}
}

// mustBeTold waits until a holder was told that it has lost its lock.
func (s *site) mustBeTold(lock *pgbaton.Lock) {
	s.t.Helper()
	select {
	case <-lock.Done():
	case <-time.After(testkit.Patience):
		require.Fail(s.t, "the holder was not told")
	}
	require.ErrorIs(s.t, lock.Err(), pgbaton.ErrLost)
	require.NotEmpty(s.t, pgbaton.LossReasonOf(lock.Err()))
	<-lock.Context().Done()
	require.ErrorIs(s.t, context.Cause(lock.Context()), pgbaton.ErrLost)
	s.ops.Add(1)
	require.ErrorIs(s.t, lock.Release(s.ctx), pgbaton.ErrLost)
}
