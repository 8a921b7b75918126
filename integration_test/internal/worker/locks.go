package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

const (
	patience = time.Minute // for a call that should succeed
	gap      = time.Second
)

// obtain acquires a key and writes down how.
func (c *child) obtain(ctx context.Context, client *pgbaton.Client, key string, shared, try bool) (*held, Result) {
	acquire, mode := client.Acquire, history.Exclusive
	switch {
	case shared && try:
		acquire, mode = client.TryAcquireShared, history.Shared
	case shared:
		acquire, mode = client.AcquireShared, history.Shared
	case try:
		acquire = client.TryAcquire
	}
	return c.record(history.Event{Key: key, Mode: mode}, func() (holding, error) {
		return acquire(ctx, pgbaton.Name(key))
	})
}

// record writes an acquire down, with what became of it.
func (c *child) record(call history.Event, acquire func() (holding, error)) (*held, Result) {
	op := c.log.Op()
	called := history.Now()
	call.At, call.Kind, call.Op = called, history.Call, op
	c.log.Append(call)
	lock, err := acquire()
	r := result(Acquire, called, err)
	if err != nil {
		c.log.Append(history.Event{At: r.At, Kind: history.Refused, Op: op, Err: r.Err})
		return nil, r
	}
	r.Token = int64(lock.Token())
	c.log.Append(history.Event{At: r.At, Kind: history.Granted, Op: op, Token: r.Token})
	return &held{lock, op}, r
}

// give releases a lock and writes down how.
func (c *child) give(ctx context.Context, h *held) Result {
	called := history.Now()
	c.log.Append(history.Event{At: called, Kind: history.Release, Op: h.op})
	r := result(Release, called, h.lock.Release(ctx))
	kind := history.Released
	if !r.OK() {
		kind = history.Failed
	}
	c.log.Append(history.Event{At: r.At, Kind: kind, Op: h.op, Err: r.Err})
	return r
}

func within(ctx context.Context, cmd Command) (context.Context, context.CancelFunc) {
	d := cmd.Within
	if d == 0 {
		d = patience
	}
	return context.WithTimeout(ctx, d)
}

func (c *child) acquire(ctx context.Context, cmd Command) (Answer, error) {
	ctx, cancel := within(ctx, cmd)
	defer cancel()
	h, r := c.obtainAny(ctx, cmd, cmd.Try)
	if h != nil {
		c.mu.Lock()
		c.locks[cmd.As] = h
		c.mu.Unlock()
	}
	return Answer{Result: r}, nil
}

// obtainAny acquires what a command names: a lock, permits, or a set.
func (c *child) obtainAny(ctx context.Context, cmd Command, try bool) (*held, Result) {
	if cmd.Count > 0 {
		return c.obtainSet(ctx, cmd)
	}
	if cmd.N == 0 {
		return c.obtain(ctx, c.client(cmd.Client), cmd.Key, cmd.Shared, try)
	}
	semaphore, err := c.semaphore(ctx, cmd.Client, cmd.Key)
	if err != nil {
		return nil, result(Acquire, history.Now(), err)
	}
	return c.obtainPermits(ctx, semaphore, cmd.Key, cmd.N, try)
}

func numbered(key string, i int) string { return fmt.Sprintf("%s/%d", key, i) }

func (c *child) acquireAll(ctx context.Context, cmd Command) (Answer, error) {
	ctx, cancel := within(ctx, cmd)
	defer cancel()
	client := c.client(cmd.Client)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var answer Answer
	for i := range cmd.Count {
		wg.Go(func() {
			key := numbered(cmd.Key, i)
			h, r := c.obtain(ctx, client, key, cmd.Shared, cmd.Try)
			c.mu.Lock()
			if h != nil {
				c.locks[key] = h
			}
			c.mu.Unlock()
			mu.Lock()
			defer mu.Unlock()
			answer.Steps = append(answer.Steps, r)
		})
	}
	wg.Wait()
	return answer, nil
}

func (c *child) release(ctx context.Context, cmd Command) (Answer, error) {
	h, err := c.lock(cmd.As)
	if err != nil {
		return Answer{}, err
	}
	return Answer{Result: c.give(ctx, h)}, nil
}

func (c *child) releaseAll(ctx context.Context, cmd Command) (Answer, error) {
	ticker := time.NewTicker(max(cmd.Pause, time.Microsecond))
	defer ticker.Stop()
	for i := range cmd.Count {
		<-ticker.C
		h, err := c.lock(numbered(cmd.Key, i))
		if err != nil {
			return Answer{}, err
		}
		if r := c.give(ctx, h); !r.OK() {
			return Answer{}, fmt.Errorf("release %d: %s", i, r.Err)
		}
	}
	return Answer{}, nil
}

func (c *child) err(_ context.Context, cmd Command) (Answer, error) {
	h, err := c.lock(cmd.As)
	if err != nil {
		return Answer{}, err
	}
	called := history.Now()
	return Answer{Result: result(Err, called, h.lock.Err())}, nil
}

func (c *child) watch(_ context.Context, cmd Command) (Answer, error) {
	h, err := c.lock(cmd.As)
	if err != nil {
		return Answer{}, err
	}
	called := history.Now()
	<-h.lock.Done()
	r := result(Watch, called, h.lock.Err())
	if r.Lost {
		c.log.Append(history.Event{At: r.At, Kind: history.Lost, Op: h.op, Err: r.Err})
	}
	return Answer{Result: r}, nil
}

// guard looks at a lock until the process has was paused, or the lock is over. Then it asks, in this order
// and before anything else can run: Err, TryAcquire of the same key, Release. The first step is the last
// look before: Called is when the lock was certainly believed to be held.
func (c *child) guard(ctx context.Context, cmd Command) (Answer, error) {
	h, err := c.lock(cmd.As)
	if err != nil {
		return Answer{}, err
	}
	var last, look Result
	for {
		called := history.Now()
		look = result(Err, called, h.lock.Err())
		stood := last.At != 0 && look.At-last.Called > int64(gap)
		if !look.OK() || (stood && last.OK()) {
			break
		}
		last = look
		time.Sleep(500 * time.Microsecond) // it must look all the time, but let others run
	}
	if look.OK() && look.Called < last.At+int64(gap) {
		// It was paused between the call and its stamp: the answer is from before.
		last, look = look, result(Err, history.Now(), h.lock.Err())
	}
	steps := []Result{last, look}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	second, tried := c.obtainAny(ctx, cmd, true)
	steps = append(steps, tried)
	if second != nil {
		c.give(ctx, second)
	}
	steps = append(steps, c.give(ctx, h))
	return Answer{Steps: steps}, nil
}
