package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// obtainPermits acquires permits and writes down how.
func (c *child) obtainPermits(ctx context.Context, s *pgbaton.Semaphore, name string, n int, try bool) (*held, Result) {
	acquire := s.Acquire
	if try {
		acquire = s.TryAcquire
	}
	return c.record(history.Event{Key: name, N: n}, func() (holding, error) { return acquire(ctx, n) })
}

// semaphore opens a semaphore once for each client.
func (c *child) semaphore(ctx context.Context, client, name string) (*pgbaton.Semaphore, error) {
	key := [2]string{client, name}
	c.mu.Lock()
	s := c.semaphores[key]
	c.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := c.client(client).Semaphore(ctx, name, 0)
	if err == nil {
		c.mu.Lock()
		c.semaphores[key] = s
		c.mu.Unlock()
	}
	return s, err
}

func (c *child) assert(ctx context.Context, cmd Command) (Answer, error) {
	h, err := c.lock(cmd.As)
	if err != nil {
		return Answer{}, err
	}
	permit, ok := h.lock.(*pgbaton.Permit)
	if !ok {
		return Answer{}, errors.New("no permit is kept as " + cmd.As)
	}
	conn, err := pgx.Connect(ctx, cmd.DSN)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close(ctx)
	tx, err := conn.Begin(ctx)
	if err != nil {
		return Answer{}, err
	}
	defer tx.Rollback(ctx) //nolint:errcheck // nothing was written
	called := history.Now()
	return Answer{Result: result(Assert, called, permit.Assert(ctx, tx))}, nil
}

// load is what permits does: Goroutines that acquire 1 to N permits of the semaphore Key, hold them for a random
// time up to Hold, release them and pause for Pause. It ends after Count grants in all, or after For.
type load struct {
	*child

	cmd       Command
	semaphore *pgbaton.Semaphore
	spell     spell
	left      atomic.Int64

	granted, lost, refused atomic.Int64

	mu      sync.Mutex
	failure error
}

func (c *child) permits(ctx context.Context, cmd Command) (Answer, error) {
	client, err := openClient(ctx, cmd)
	if err != nil {
		return Answer{}, err
	}
	semaphore, err := client.Semaphore(ctx, cmd.Key, 0)
	if err != nil {
		return Answer{}, errors.Join(err, client.Close(ctx))
	}
	l := &load{child: c, cmd: cmd, semaphore: semaphore, spell: spell{stopped: &c.stopped, end: time.Now().Add(cmd.For)}}
	if cmd.For == 0 {
		l.spell.end = time.Now().Add(time.Hour) // Count ends it, or a stop
	}
	l.left.Store(int64(cmd.Count))
	var group sync.WaitGroup
	for range cmd.Goroutines {
		group.Go(func() {
			for l.more() {
				if err := l.round(ctx); err != nil {
					l.fail(err)
				}
			}
		})
	}
	group.Wait()
	if err := client.Close(ctx); err != nil {
		l.fail(err)
	}
	return Answer{Counts: map[string]int64{
		"granted": l.granted.Load(), "lost": l.lost.Load(), "refused": l.refused.Load(),
	}}, l.failure
}

func (l *load) more() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure != nil || l.spell.over(l.granted.Load() > 0) {
		return false
	}
	return l.cmd.Count == 0 || l.left.Add(-1) >= 0
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failure == nil {
		l.failure = err
	}
}

// round is one grant. With Faults a loss may happen.
func (l *load) round(ctx context.Context) error {
	ctx, cancel := within(ctx, l.cmd)
	defer cancel()
	n := l.cmd.N
	if !l.cmd.Exactly {
		n = 1 + rand.IntN(l.cmd.N) //nolint:gosec // no secret
	}
	h, r := l.obtainPermits(ctx, l.semaphore, l.cmd.Key, n, false)
	if h == nil {
		l.refused.Add(1)
		return fmt.Errorf("acquire %d: %s", n, r.Err)
	}
	l.granted.Add(1)
	if l.cmd.Hold > 0 {
		time.Sleep(rand.N(l.cmd.Hold)) //nolint:gosec // no secret
	}
	r = l.give(ctx, h)
	if r.Lost && l.cmd.Faults {
		l.lost.Add(1)
	} else if !r.OK() {
		return errors.New(r.Err)
	}
	time.Sleep(l.cmd.Pause)
	return nil
}
