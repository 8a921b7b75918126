package pgbaton

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/waitgraph"
)

// heldLocks is what a goroutine holds by its context: the locks of one acquire, and by outer the locks that were
// held around it.
type heldLocks struct {
	client *Client
	keys   []Key
	holds  []*lockmgr.Hold
	outer  *heldLocks
}

type heldLocksKey struct{}

// heldBy returns what is held by a context, nil if nothing.
func heldBy(ctx context.Context) *heldLocks {
	held, _ := ctx.Value(heldLocksKey{}).(*heldLocks)
	return held
}

// holding is ctx for what runs while keys are held; there is a hold for each, or for the first ones.
func (c *Client) holding(ctx context.Context, keys []Key, holds []*lockmgr.Hold) context.Context {
	if len(holds) == 0 {
		return ctx
	}
	held := &heldLocks{client: c, keys: keys[:len(holds)], holds: holds, outer: heldBy(ctx)}
	return context.WithValue(ctx, heldLocksKey{}, held)
}

// in returns the locks that are still held and that a wait of a client can collide with: locks in
// other databases have nothing to do with it.
func (h *heldLocks) in(c *Client) []waitgraph.Lock {
	var locks []waitgraph.Lock
	for ; h != nil; h = h.outer {
		if h.client != c && h.client.identity() != c.identity() {
			continue
		}
		for i, hold := range h.holds {
			if hold.Reason() != nil {
				continue
			}
			locks = append(locks, waitgraph.Lock{Key: h.keys[i].key, Mode: hold.Mode()})
		}
	}
	return locks
}

// wait waits for a key. When other locks are held by ctx, and the wait is not a short one, it is watched for
// deadlocks; a key that is free costs no more than without.
func (c *Client) wait(ctx context.Context, key Key, use advisory.Use, mode advisory.Mode) (*lockmgr.Hold, error) {
	held := heldBy(ctx)
	if held == nil {
		return c.locks.Acquire(ctx, c.namedFor(key, use), mode, false)
	}
	request, err := c.locks.Begin(ctx, c.namedFor(key, use), mode, false)
	if err != nil {
		return nil, err
	}
	if request.Within(ctx, waitgraph.After) || len(held.in(c)) == 0 {
		return request.Wait(ctx)
	}
	watched, end := context.WithCancelCause(ctx)
	defer end(nil)
	request.Watched()
	wants := waitgraph.Lock{Key: key.key, Mode: mode}
	w := c.waits.Watch(c.label(key), wants, func() []waitgraph.Lock { return held.in(c) }, end)
	hold, err := request.Wait(watched)
	w.Over()
	if found := context.Cause(watched); err != nil && ctx.Err() == nil && errors.Is(found, lockerr.Deadlock) {
		return nil, fmt.Errorf("%w: %w", lockerr.NotAcquired, found)
	}
	return hold, err
}
