package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// crowd lets many goroutines wait for many keys; each that gets its key gives it back at once.
func (c *child) crowd(ctx context.Context, cmd Command) (Answer, error) {
	ctx, cancel := within(ctx, cmd)
	defer cancel()
	client := c.client(cmd.Client)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failure error
	for i := range cmd.Count {
		for range cmd.Goroutines {
			wg.Go(func() {
				h, r := c.obtain(ctx, client, numbered(cmd.Key, i), cmd.Shared, false)
				if h != nil {
					r = c.give(ctx, h)
				}
				if !r.OK() {
					mu.Lock()
					defer mu.Unlock()
					failure = errors.New(r.Err)
				}
			})
		}
	}
	wg.Wait()
	return Answer{Counts: map[string]int64{"goroutines": int64(runtime.NumGoroutine())}}, failure
}

// relay takes a key and passes it on, with the library or with PostgreSQL's own function.
func (c *child) relay(ctx context.Context, cmd Command) (Answer, error) {
	if cmd.Bare {
		return Answer{}, c.bareRelay(ctx, cmd)
	}
	client := c.client(cmd.Client)
	for range cmd.Count {
		h, r := c.obtain(ctx, client, cmd.Key, false, false)
		if h == nil {
			return Answer{}, errors.New(r.Err)
		}
		time.Sleep(cmd.Hold)
		if r = c.give(ctx, h); !r.OK() {
			return Answer{}, errors.New(r.Err)
		}
	}
	return Answer{}, nil
}

// BareKey is the advisory lock of a bare [Relay].
const BareKey = 4711

func (c *child) bareRelay(ctx context.Context, cmd Command) error {
	conn, err := pgx.Connect(ctx, cmd.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for i := range cmd.Count {
		op := c.log.Op()
		c.log.Append(history.Event{At: history.Now(), Kind: history.Call, Op: op, Key: cmd.Key, Mode: history.Exclusive})
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", BareKey); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		c.log.Append(history.Event{At: history.Now(), Kind: history.Granted, Op: op})
		time.Sleep(cmd.Hold)
		c.log.Append(history.Event{At: history.Now(), Kind: history.Release, Op: op})
		if _, err := conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", BareKey); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
		c.log.Append(history.Event{At: history.Now(), Kind: history.Released, Op: op})
	}
	return nil
}
