package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// sets lets Goroutines of each of Clients take random sets of Count of Keys keys, for a while: by AcquireAll, or one
// by one in random order.
func (c *child) sets(ctx context.Context, cmd Command) (Answer, error) {
	counts := &setCounts{}
	var clients []*pgbaton.Client
	for range max(cmd.Clients, 1) {
		client, err := openClient(ctx, cmd)
		if err != nil {
			return Answer{}, err
		}
		clients = append(clients, client)
	}
	counts.end = time.Now().Add(cmd.For)
	goesOn := spell{stopped: &c.stopped, end: counts.end}
	take := c.takeSet
	if cmd.Kind == ByHand {
		take = c.takeByHand
	}
	var wg sync.WaitGroup
	for _, client := range clients {
		for range cmd.Goroutines {
			wg.Go(func() {
				for !counts.failed() && !goesOn.over(counts.sets.Load() > 0 || cmd.Kind == ByHand) {
					if err := take(ctx, client, cmd, counts); err != nil {
						counts.fail(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, client := range clients {
		if err := client.Close(ctx); err != nil {
			counts.fail(err)
		}
	}
	return Answer{Counts: map[string]int64{
		"sets": counts.sets.Load(), "deadlocks": counts.deadlocks.Load(), "longest": counts.longest.Load(),
	}}, counts.failure
}

// oneSet is a set that a later command will use. Its token is its first key's.
type oneSet struct {
	*pgbaton.LockSet

	first pgbaton.Key
}

func (o oneSet) Token() pgbaton.Token {
	return o.Lock(o.first).Token()
}

// obtainSet acquires a set, which the history has as one key.
func (c *child) obtainSet(ctx context.Context, cmd Command) (*held, Result) {
	var keys []pgbaton.Key
	for i := range cmd.Count {
		keys = append(keys, pgbaton.Name(numbered(cmd.Key, i)))
	}
	return c.record(history.Event{Key: cmd.Key, Mode: history.Exclusive}, func() (holding, error) {
		set, err := c.client(cmd.Client).AcquireAll(ctx, keys...)
		return oneSet{set, keys[0]}, err
	})
}

// Kinds of sets.
const (
	BySet  = "set"
	ByHand = "by-hand"
)

type setCounts struct {
	end time.Time // of the load

	sets, deadlocks atomic.Int64
	longest         atomic.Int64 // wait that ended as a deadlock, in nanoseconds

	mu      sync.Mutex
	failure error
}

func (s *setCounts) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure != nil
}

func (s *setCounts) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = errors.Join(s.failure, err)
}

func (s *setCounts) deadlock(waited int64) {
	s.deadlocks.Add(1)
	for old := s.longest.Load(); waited > old && !s.longest.CompareAndSwap(old, waited); old = s.longest.Load() {
	}
}

// randomSet is some of the keys, in random order.
func randomSet(cmd Command) []string {
	var names []string
	for _, i := range rand.Perm(cmd.Keys)[:cmd.Count] {
		names = append(names, numbered(cmd.Key, i))
	}
	return names
}

// takeSet is one AcquireAll with its release; the history has each key as a lock of its own.
func (c *child) takeSet(ctx context.Context, client *pgbaton.Client, cmd Command, counts *setCounts) error {
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	names := randomSet(cmd)
	var keys []pgbaton.Key
	ops := make([]int64, len(names))
	all := func(e history.Event) {
		for _, e.Op = range ops {
			c.log.Append(e)
		}
	}
	for i, name := range names {
		keys = append(keys, pgbaton.Name(name))
		ops[i] = c.log.Op()
		c.log.Append(history.Event{At: history.Now(), Kind: history.Call, Op: ops[i], Key: name, Mode: history.Exclusive})
	}
	set, err := client.AcquireAll(within, keys...)
	at := history.Now()
	if err != nil {
		all(history.Event{At: at, Kind: history.Refused, Err: err.Error()})
		return err
	}
	for i, key := range keys {
		c.log.Append(history.Event{At: at, Kind: history.Granted, Op: ops[i], Token: int64(set.Lock(key).Token())})
	}
	timer := time.NewTimer(cmd.Hold)
	defer timer.Stop()
	select {
	case <-timer.C:
		all(history.Event{At: history.Now(), Kind: history.Release})
	case <-set.Done():
		all(history.Event{At: history.Now(), Kind: history.Lost})
	}
	err = set.Release(ctx)
	over := history.Event{At: history.Now(), Kind: history.Released}
	if err != nil {
		over.Kind, over.Err = history.Failed, err.Error()
	}
	all(over)
	counts.sets.Add(1)
	return err
}

// takeByHand acquires one key after the other, each with the context of the one before, and gives all back when the
// order has led into a deadlock, or the load is over.
func (c *child) takeByHand(ctx context.Context, client *pgbaton.Client, cmd Command, counts *setCounts) error {
	held := make([]*held, 0, cmd.Count)
	defer func() {
		for _, h := range held {
			if r := c.give(ctx, h); !r.OK() {
				counts.fail(fmt.Errorf("release: %s", r.Err))
			}
		}
	}()
	inner := ctx
	for _, name := range randomSet(cmd) {
		within, cancel := context.WithDeadline(inner, counts.end)
		h, r := c.obtain(within, client, name, false, false)
		cancel()
		switch {
		case r.Deadlock:
			counts.deadlock(r.At - r.Called)
			return nil
		case r.TimedOut:
			return nil
		case h == nil:
			return fmt.Errorf("%s: %s", name, r.Err)
		}
		held = append(held, h)
		inner = h.lock.Context()
	}
	time.Sleep(cmd.Hold)
	counts.sets.Add(1)
	return nil
}

// gather acquires a set. The history, which is of single keys, does not have it.
func (c *child) gather(ctx context.Context, cmd Command) (Answer, error) {
	ctx, cancel := within(ctx, cmd)
	defer cancel()
	var keys []pgbaton.Key
	for i := range cmd.Count {
		keys = append(keys, pgbaton.Name(numbered(cmd.Key, i)))
	}
	called := history.Now()
	set, err := c.client(cmd.Client).AcquireAll(ctx, keys...)
	r := result(Gather, called, err)
	if err == nil {
		c.mu.Lock()
		c.locks[cmd.As] = &held{oneSet{set, keys[0]}, c.log.Op()}
		c.mu.Unlock()
	}
	return Answer{Result: r}, nil
}
