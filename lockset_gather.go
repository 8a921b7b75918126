package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/waitgraph"
)

// gathering is a wait for several keys. A session of the lock queue takes them one after the other; when it has all,
// it gives them back but keeps their gates, so that they can be taken in one round trip. While all
// sessions are busy, the gathering tries now and then.
type gathering struct {
	client *Client
	keys   []Key
	turns  engine.Gathering
	failed Key // the one that was found taken last
	outer  *heldLocks
	pause  time.Duration // between tries without a session

	end     context.CancelCauseFunc // of the wait
	waits   Key                     // for which key it waits
	alarm   *time.Timer             // goes off when that wait is to be watched
	watched *waitgraph.Watched
}

const (
	firstLook = 500 * time.Millisecond
	lastLook  = 4 * time.Second
)

// gatherAll waits until it holds all keys, one of which was found taken. It fails with a key that could not be had.
func (c *Client) gatherAll(ctx context.Context, keys []Key, failed Key) ([]*lockmgr.Hold, Key, error) {
	turns := c.locks.Gather(numbers(keys))
	if turns == nil {
		return c.waitInOrder(ctx, keys)
	}
	watched, end := context.WithCancelCause(ctx)
	defer end(nil)
	g := &gathering{
		client: c, keys: keys, turns: turns, failed: failed, outer: heldBy(ctx), pause: firstLook,
		end: end, waits: failed, alarm: time.NewTimer(waitgraph.After),
	}
	g.publish()
	defer g.over()
	holds, err := g.wait(watched)
	if found := context.Cause(watched); err != nil && ctx.Err() == nil && errors.Is(found, lockerr.Deadlock) {
		err = fmt.Errorf("%w: %w", lockerr.NotAcquired, found)
	}
	return holds, g.failed, err
}

// waitInOrder waits for one key after the other and keeps those before, in the order in which everybody takes them: so
// sets never wait for one another in a circle. It fails with a key that could not be had.
func (c *Client) waitInOrder(ctx context.Context, keys []Key) ([]*lockmgr.Hold, Key, error) {
	holds := make([]*lockmgr.Hold, 0, len(keys))
	for _, key := range keys {
		hold, err := c.wait(c.holding(ctx, keys, holds), key, advisory.InSet, advisory.Exclusive)
		if err != nil {
			c.locks.GiveBackMany(holds)
			return nil, key, err
		}
		holds = append(holds, hold)
	}
	return holds, Key{}, nil
}

// over ends the wait.
func (g *gathering) over() {
	g.turns.Leave()
	g.alarm.Stop()
	g.unwatch()
	g.client.gatherings.Delete(g)
}

// publish has the registry know for which key the wait is, as long as it is not watched.
func (g *gathering) publish() { g.client.gatherings.Store(g, g.client.named(g.waits)) }

func (g *gathering) wait(ctx context.Context) ([]*lockmgr.Hold, error) {
	for {
		turn, err := g.next(ctx)
		if err != nil {
			return nil, err
		}
		if turn && !g.turns.Held() { // it has lasted too long already
			g.turns.Again()
			continue
		}
		holds, failed, err := g.try(ctx, turn)
		g.failed = failed
		switch {
		case err == nil, !errors.Is(err, lockerr.NotAcquired), errors.Is(err, lockerr.Engine): // no wait brings the client's engine back
			return holds, err
		case ctx.Err() != nil: // after a key was found taken
			return nil, g.client.locks.Ended(ctx)
		}
		if turn {
			g.turns.Again()
		}
	}
}

// try tries all keys, in a turn before the waiters of this process for one of them.
func (g *gathering) try(ctx context.Context, turn bool) ([]*lockmgr.Hold, Key, error) {
	try := g.client.locks.TryMany
	if turn {
		try = g.client.locks.TakeMany
	}
	return g.client.allOrNone(g.keys, func(keys []advisory.Named) ([]*lockmgr.Hold, []error) {
		return try(ctx, keys, advisory.Exclusive)
	})
}

// next returns when the keys should be tried: in a turn, or because no session waits for them at the moment.
func (g *gathering) next(ctx context.Context) (turn bool, err error) {
	look := time.NewTimer(backoff.About(g.pause))
	defer look.Stop()
	for {
		g.follow()
		select {
		case <-g.turns.Ready():
			return true, g.turns.Err()
		case <-look.C:
			if !g.turns.Placed() {
				g.pause = min(2*g.pause, lastLook)
				return false, nil
			}
			look.Reset(g.pause)
		case <-g.turns.Moved():
		case <-g.alarm.C:
			g.watch()
		case <-g.client.locks.Closing():
			return false, lockerr.Closed
		case <-ctx.Done():
			return false, g.client.locks.Ended(ctx)
		}
	}
}

// follow takes note of the key that is waited for now.
func (g *gathering) follow() {
	key := g.failed
	if got, known := g.turns.Got(); known && got < len(g.keys) {
		key = g.keys[got]
	}
	if key != g.waits {
		g.waits = key
		g.unwatch()
		g.publish()
		g.alarm.Reset(waitgraph.After)
	}
}

// watch has the wait for a key watched for deadlocks, if there is anything in the way of others.
func (g *gathering) watch() {
	if len(g.holds()) == 0 {
		g.alarm.Reset(waitgraph.After)
		return
	}
	g.client.gatherings.Delete(g)
	wants := waitgraph.Lock{Key: g.waits.key, Mode: advisory.Exclusive}
	g.watched = g.client.waits.Watch(g.client.label(g.waits), wants, g.holds, g.end)
}

func (g *gathering) unwatch() {
	if g.watched != nil {
		g.watched.Over()
		g.watched = nil
	}
}

// holds is what the wait keeps from others: what its goroutine holds, and what is gathered.
func (g *gathering) holds() []waitgraph.Lock {
	locks := g.outer.in(g.client)
	got, _ := g.turns.Got()
	for _, key := range g.keys[:got] {
		locks = append(locks, waitgraph.Lock{Key: key.key, Mode: advisory.Exclusive})
	}
	return locks
}
