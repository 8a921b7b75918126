package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// StormKeys is how many keys the storm's locks fight for.
const StormKeys = 4

// briefly returns a context whose end comes at every sort of moment.
func briefly(ctx context.Context, r *rand.Rand) (context.Context, context.CancelFunc) {
	switch r.IntN(10) {
	case 0:
		return context.WithTimeout(ctx, upTo(r, 5*time.Millisecond))
	case 1, 2, 3:
		return context.WithTimeout(ctx, 20*time.Millisecond+upTo(r, 480*time.Millisecond))
	}
	return context.WithTimeout(ctx, 5*time.Second)
}

// span returns for how long something is held: mostly a moment.
func span(r *rand.Rand) time.Duration {
	if r.IntN(20) == 0 {
		return upTo(r, 60*time.Millisecond)
	}
	return upTo(r, 3*time.Millisecond)
}

// take makes an acquire, and counts it.
func (s *storm) take(ctx context.Context, op string, call history.Event, acquire func() (holding, error)) *held {
	h, r := s.record(call, acquire)
	s.stats.note(op, ctx, r)
	return h
}

// spend holds a lock until the time is over or the loss is told, and releases it.
func (s *storm) spend(ctx context.Context, h *held, op string, d time.Duration) {
	if s.load.Mutant == Deaf {
		time.Sleep(d + s.cmd.TTL/4)
		s.log.Append(history.Event{At: history.Now(), Kind: history.Release, Op: h.op})
		_ = h.lock.Release(ctx) // the mistake
		s.log.Append(history.Event{At: history.Now(), Kind: history.Released, Op: h.op})
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.lock.Done():
		s.log.Append(history.Event{At: history.Now(), Kind: history.Lost, Op: h.op})
	}
	r := s.give(ctx, h)
	s.bounded(op, r)
	if !r.OK() {
		s.stats.loss(op, r)
	}
}

// Releases ends the names of operations that are releases, whose time begins to count after TTL.
const Releases = ", release after TTL"

// bounded notes for how long a release lasted beyond TTL.
func (s *storm) bounded(op string, r Result) {
	s.stats.mu.Lock()
	defer s.stats.mu.Unlock()
	s.stats.late = append(s.stats.late, lateness{op + Releases, min(r.Called+int64(s.cmd.TTL), r.At), r.At})
}

// lock takes one key in one of the ways.
func (s *storm) lock(ctx context.Context, client *pgbaton.Client, r *rand.Rand) {
	key := numbered("storm/lock", r.IntN(StormKeys))
	op, acquire, mode := "Acquire", client.Acquire, history.Exclusive
	switch r.IntN(6) {
	case 0:
		op, acquire = "TryAcquire", client.TryAcquire
	case 1, 2:
		op, acquire, mode = "AcquireShared", client.AcquireShared, history.Shared
	}
	within, cancel := briefly(ctx, r)
	defer cancel()
	h := s.take(within, op, history.Event{Key: key, Mode: mode}, func() (holding, error) {
		return acquire(within, pgbaton.Name(key))
	})
	if h != nil {
		s.spend(ctx, h, op, span(r))
	}
}

// set takes two or three keys together. The history has each as a lock of its own.
func (s *storm) set(ctx context.Context, client *pgbaton.Client, r *rand.Rand) {
	within, cancel := briefly(ctx, r)
	defer cancel()
	perm := r.Perm(StormKeys)[:2+r.IntN(2)]
	keys, ops := make([]pgbaton.Key, len(perm)), make([]int64, len(perm))
	called := history.Now()
	for i, number := range perm {
		name := numbered("storm/lock", number)
		keys[i], ops[i] = pgbaton.Name(name), s.log.Op()
		s.log.Append(history.Event{At: called, Kind: history.Call, Op: ops[i], Key: name, Mode: history.Exclusive})
	}
	set, err := client.AcquireAll(within, keys...)
	got := result("AcquireAll", called, err)
	s.stats.note("AcquireAll", within, got)
	all := func(kind string, at int64) {
		for _, op := range ops {
			s.log.Append(history.Event{At: at, Kind: kind, Op: op})
		}
	}
	if err != nil {
		all(history.Refused, got.At)
		return
	}
	for i, key := range keys {
		s.log.Append(history.Event{At: got.At, Kind: history.Granted, Op: ops[i], Token: int64(set.Lock(key).Token())})
	}
	timer := time.NewTimer(span(r))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-set.Done():
		all(history.Lost, history.Now())
	}
	release := history.Now()
	all(history.Release, release)
	given := result("AcquireAll", release, set.Release(ctx))
	s.bounded("AcquireAll", given)
	if given.OK() {
		all(history.Released, given.At)
		return
	}
	all(history.Failed, given.At)
	s.stats.loss("AcquireAll", given)
}

// line is a semaphore as a lane uses it.
type line struct {
	name, op string
	capacity int
}

func (s *storm) permits(ctx context.Context, client *pgbaton.Client, l *line, r *rand.Rand) {
	within, cancel := briefly(ctx, r)
	defer cancel()
	semaphore, err := client.Semaphore(within, l.name, 0)
	if err != nil {
		s.stats.note("OpenSemaphore", within, result("open", history.Now(), err))
		return
	}
	n := 1 + r.IntN(l.capacity)
	acquire := semaphore.Acquire
	if r.IntN(6) == 0 {
		acquire = semaphore.TryAcquire
	}
	h := s.take(within, l.op, history.Event{Key: l.name, N: n}, func() (holding, error) { return acquire(within, n) })
	if h != nil {
		s.spend(ctx, h, l.op, span(r))
	}
}

// lead leads for a short term and resigns.
func (s *storm) lead(ctx context.Context, client *pgbaton.Client, name string, r *rand.Rand) {
	within, cancel := context.WithTimeout(ctx, 3*time.Second+upTo(r, 4*time.Second))
	defer cancel()
	called, terms := history.Now(), 0
	err := client.Lead(within, name, func(ctx context.Context, term *pgbaton.Lock) error {
		terms++
		op := s.log.Op()
		s.log.Append(history.Event{At: called, Kind: history.Call, Op: op, Key: "leader " + name, Mode: history.Exclusive})
		s.log.Append(history.Event{At: history.Now(), Kind: history.Granted, Op: op, Token: int64(term.Token())})
		s.stats.note("Lead", context.Background(), Result{})
		s.spend(ctx, &held{term, op}, "Lead", 20*time.Millisecond+upTo(r, 200*time.Millisecond))
		called = history.Now()
		return nil
	})
	s.stats.note("Lead returns", within, result("Lead", called, err))
}

// once runs something that is due every now and then. The run is a hold of the key as well.
func (s *storm) once(ctx context.Context, client *pgbaton.Client, r *rand.Rand) {
	within, cancel := briefly(ctx, r)
	defer cancel()
	key := numbered("storm/once", r.IntN(2))
	if r.IntN(2) == 0 {
		key = job(r)
	}
	called := history.Now()
	var op int64
	err := client.Once(within, key, WindowOf(key), func(ctx context.Context, lock *pgbaton.Lock) error {
		at := history.Now()
		op = s.log.Op()
		s.log.Append(history.Event{At: at, Kind: history.Ran, From: called, Key: key, Token: int64(lock.Token())})
		s.log.Append(history.Event{At: called, Kind: history.Call, Op: op, Key: key, Mode: history.Exclusive})
		s.log.Append(history.Event{At: at, Kind: history.Granted, Op: op, Token: int64(lock.Token())})
		s.dwell(ctx, op, 2*span(r))
		return nil
	})
	s.settle(op, err)
	s.stats.note("Once", within, result("Once", called, err))
	s.pause(upTo(r, 40*time.Millisecond))
}

// dwell is what a func does under a lock that the library releases after it.
func (c *child) dwell(ctx context.Context, op int64, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	c.log.Append(history.Event{At: history.Now(), Kind: history.Release, Op: op})
}

// settle writes down what a call said of the lock under which its func ran, if it ran.
func (c *child) settle(op int64, err error) {
	if op == 0 {
		return
	}
	kind := history.Released
	if err != nil { // the lock may have been lost, or the outcome is not known
		kind = history.Failed
	}
	c.log.Append(history.Event{At: history.Now(), Kind: kind, Op: op})
}

// long takes one of the keys that are held for longer, so that a fault meets a holder.
func (s *storm) long(ctx context.Context, client *pgbaton.Client, r *rand.Rand) {
	key := numbered("storm/long", r.IntN(StormKeys))
	within, cancel := briefly(ctx, r)
	defer cancel()
	h := s.take(within, "Acquire", history.Event{Key: key, Mode: history.Exclusive}, func() (holding, error) {
		return client.Acquire(within, pgbaton.Name(key))
	})
	if h != nil {
		s.spend(ctx, h, "Acquire", upTo(r, 150*time.Millisecond))
	}
}

// bulk holds many locks for a while, or until one is lost, so that the client needs more than one anchor.
func (s *storm) bulk(ctx context.Context, client *pgbaton.Client, number int, r *rand.Rand) {
	const atOnce = 50
	locks := make([]*pgbaton.Lock, s.load.Bulk)
	var group sync.WaitGroup
	for lane := range atOnce {
		group.Go(func() {
			for i := lane; i < len(locks) && !s.over(); i += atOnce {
				within, cancel := context.WithTimeout(ctx, 5*time.Second)
				key := pgbaton.Name(fmt.Sprintf("storm/bulk/%s/%d/%d", s.cmd.As, number, i))
				called := history.Now()
				lock, err := client.Acquire(within, key)
				s.stats.note("bulk", within, result("bulk", called, err))
				cancel()
				locks[i] = lock
			}
		})
	}
	group.Wait()
	lost := func(lock *pgbaton.Lock) bool { return lock != nil && lock.Err() != nil }
	for end := time.Now().Add(upTo(r, 4*s.cmd.TTL)); time.Now().Before(end) && !s.over() && !slices.ContainsFunc(locks, lost); {
		s.pause(20 * time.Millisecond)
	}
	for lane := range atOnce {
		group.Go(func() {
			for i := lane; i < len(locks); i += atOnce {
				if locks[i] != nil {
					_ = locks[i].Release(ctx) // these locks are ballast, and often lost
				}
			}
		})
	}
	group.Wait()
}

// upTo returns a random duration below a bound.
func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

// StormNames returns the names of all locks that a storm takes, leaders' apart.
func StormNames() []string {
	names := []string{"storm/DoTx", "storm/DoTx, fenced", "storm/AcquireTx", "storm/fence", numbered("storm/once", 0), numbered("storm/once", 1)}
	for i := range StormKeys {
		names = append(names, numbered("storm/lock", i), numbered("storm/long", i))
	}
	return names
}
