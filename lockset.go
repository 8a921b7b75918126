package pgbaton

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/grant"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
)

// LockSet is several keys that are held together, all exclusively. It is made by [Client.AcquireAll] and
// [Client.TryAcquireAll], and ended by Release, by [Client.Close], or by the loss of any of its locks. It is safe for
// concurrent use.
//
// # How it works
//
// Each key is a lock as [Client.Acquire] makes it. When one of them is taken, a session that only waits gathers them:
// it takes the keys one after the other, each when it is free, and when it has all, the client takes them over in one
// round trip. All clients gather keys in one order, so sets never deadlock with one another. The order is that of the
// keys' numbers, not that in which they are given.
type LockSet struct {
	client *Client
	locks  []*Lock         // in the common order
	parent context.Context //nolint:containedctx // the values of the set's own context

	context grantContext
	end     grant.End
}

// AcquireAll waits until it holds all keys exclusively, or ctx ends. Keys may be given in any order, and more
// than once: a name and its number are one lock. When all are free it takes one round trip.
//
// On success all keys are held, each with a token as in [Client.Acquire]. On failure none is, and the error is as in
// Acquire. While it waits for a key, the keys before it in the common order are kept from others, as long as the process
// shows that it lives: when it freezes they are free within a second and a half, whatever the TTL. More sets than the
// client has sessions to wait in take turns at gathering.
func (c *Client) AcquireAll(ctx context.Context, keys ...Key) (*LockSet, error) {
	return c.limitSet(c.acquireAll(ctx, keys, false))
}

// TryAcquireAll is [Client.AcquireAll] for keys that are free: it does not wait for other holders. When there is
// one, or a waiter, of any key, it holds nothing and returns [ErrNotAcquired], naming such a key.
func (c *Client) TryAcquireAll(ctx context.Context, keys ...Key) (*LockSet, error) {
	return c.limitSet(c.acquireAll(ctx, keys, true))
}

func (c *Client) acquireAll(ctx context.Context, keys []Key, try bool) (*LockSet, error) {
	ordered, err := distinct(keys)
	if err == nil {
		err = c.made()
	}
	if err != nil {
		return nil, wrap(err, "acquire locks")
	}
	for {
		holds, failed, err := c.holdAll(ctx, ordered, try)
		if err != nil {
			return nil, wrap(err, "acquire locks: %s", failed.what())
		}
		if !slices.ContainsFunc(holds, func(h *lockmgr.Hold) bool { return h.Err() != nil }) {
			return c.newLockSet(ctx, ordered, holds), nil
		}
		c.locks.GiveBackMany(holds) // one was lost while others were granted: from the start
	}
}

// holdAll takes all keys, or none and returns one that failed.
func (c *Client) holdAll(ctx context.Context, keys []Key, try bool) (holds []*lockmgr.Hold, failed Key, err error) {
	holds, failed, err = c.allOrNone(keys, func(wanted []advisory.Named) ([]*lockmgr.Hold, []error) {
		return c.locks.TryMany(ctx, wanted, advisory.Exclusive)
	})
	switch {
	case err == nil, try, !errors.Is(err, lockerr.NotAcquired):
		return holds, failed, err
	case ctx.Err() != nil: // after the key was found taken
		return nil, failed, c.locks.Ended(ctx)
	case len(keys) == 1:
		hold, err := c.wait(ctx, failed, advisory.Single, advisory.Exclusive)
		return []*lockmgr.Hold{hold}, failed, err
	}
	return c.gatherAll(ctx, keys, failed)
}

// allOrNone takes keys by one round trip, and gives back what was granted if not all was. An error that is not only that
// a key is taken comes before the others.
func (c *Client) allOrNone(keys []Key, take func([]advisory.Named) ([]*lockmgr.Hold, []error)) (holds []*lockmgr.Hold, failed Key, err error) {
	wanted, use := make([]advisory.Named, len(keys)), advisory.Single
	if len(keys) > 1 {
		use = advisory.InSet
	}
	for i, key := range keys {
		wanted[i] = c.namedFor(key, use)
	}
	holds, errs := take(wanted)
	for i, e := range errs {
		if e != nil && (err == nil || (errors.Is(err, lockerr.NotAcquired) && !errors.Is(e, lockerr.NotAcquired))) {
			failed, err = keys[i], e
		}
	}
	if err != nil {
		c.locks.GiveBackMany(holds)
		return nil, failed, err
	}
	return holds, Key{}, nil
}

// numbers are keys as the server knows them.
func numbers(keys []Key) []advisory.Key {
	all := make([]advisory.Key, len(keys))
	for i, key := range keys {
		all[i] = key.key
	}
	return all
}

// distinct checks keys and returns each lock once, in the order in which everybody takes them.
func distinct(keys []Key) (ordered []Key, err error) {
	if len(keys) == 0 {
		return nil, errors.New("no keys to acquire")
	}
	seen := map[advisory.Key]bool{}
	for _, key := range keys {
		if err := key.validate(); err != nil {
			return nil, err
		}
		if !seen[key.key] {
			seen[key.key] = true
			ordered = append(ordered, key)
		}
	}
	slices.SortFunc(ordered, inCommonOrder)
	return ordered, nil
}

// inCommonOrder compares keys in the order in which every client takes them. It must never change: clients of
// different versions share a database.
func inCommonOrder(a, b Key) int {
	switch {
	case a.key.Pair == b.key.Pair:
		return cmp.Compare(a.key.ID, b.key.ID)
	case a.key.Pair:
		return 1
	}
	return -1
}

func (c *Client) newLockSet(ctx context.Context, ordered []Key, holds []*lockmgr.Hold) *LockSet {
	s := &LockSet{client: c, parent: ctx}
	for i, key := range ordered {
		lock := &Lock{client: c, key: key, hold: holds[i], parent: ctx}
		s.locks = append(s.locks, lock)
		lock.hold.OnEnd(func(reason error) { s.end.Finish(fmt.Errorf("%s: %w", key.what(), reason)) })
	}
	return s
}

// none reports whether the set was never acquired.
func (s *LockSet) none() bool { return s == nil || len(s.locks) == 0 }

// Lock returns the lock on one of the set's keys, which has the token; nil if the set does not have the key. The set is
// over as soon as one of its locks is released by itself.
func (s *LockSet) Lock(key Key) *Lock {
	if s.none() {
		return nil
	}
	for _, lock := range s.locks {
		if lock.key.key == key.key {
			return lock
		}
	}
	return nil
}

// Done is closed when the set is over: released, or one of its locks is lost or no longer to be trusted; see
// [Lock.Done].
func (s *LockSet) Done() <-chan struct{} {
	if s.none() {
		return never
	}
	return s.end.Done()
}

// Context is a context that ends when the set is over, with [LockSet.Err] as its cause. It has the values of the
// acquire's context, but not its end. Every call returns the same. Deadlocks are found as with [Lock.Context].
func (s *LockSet) Context() context.Context {
	if s.none() {
		return noContext()
	}
	return s.context.of(s.client.holding(s.parent, s.ordered(), s.holds()), &s.end)
}

// Err is nil while all locks of the set are held and can be trusted. Afterwards it returns, as [Lock.Err] does, what
// happened to the first that was not. It asks no server.
func (s *LockSet) Err() error {
	if s.none() {
		return wrap(errNoGrant, "locks")
	}
	if over := s.end.Reason(); over != nil {
		return wrap(over, "")
	}
	for _, lock := range s.locks {
		if err := lock.Err(); err != nil { // the clock knows it first
			return err
		}
	}
	return nil
}

// Release ends the set, all its locks in one round trip. Nil means that every one was held without a break until
// this call; otherwise the error says which were not, as [Lock.Release] does. It is safe to call twice, in
// defer, and after ctx has ended. A second call returns what the first did.
func (s *LockSet) Release(ctx context.Context) error {
	if s.none() {
		return wrap(errNoGrant, "release locks")
	}
	var all error
	for i, err := range s.client.locks.ReleaseMany(s.holds()) {
		if err != nil {
			all = also(all, wrap(err, "release %s", s.locks[i].key.what()))
		}
	}
	return all
}

// ordered are the keys of locks.
func (s *LockSet) ordered() []Key {
	keys := make([]Key, len(s.locks))
	for i, lock := range s.locks {
		keys[i] = lock.key
	}
	return keys
}

func (s *LockSet) holds() []*lockmgr.Hold {
	holds := make([]*lockmgr.Hold, len(s.locks))
	for i, lock := range s.locks {
		holds[i] = lock.hold
	}
	return holds
}

// DoAll is [Client.DoWith] for several keys, which are held together as by [Client.AcquireAll].
func (c *Client) DoAll(
	ctx context.Context, keys []Key, opts *LockOpts, fn func(ctx context.Context, locks *LockSet) error,
) (err error) {
	o, err := opts.checked(c, "DoAll", usesWait|usesMaxHold)
	if err != nil {
		return wrap(err, "do with locks")
	}
	wait, cancel := o.waiting(ctx)
	set, err := c.acquireAll(wait, keys, o.Wait == NoWait)
	cancel()
	if err != nil {
		return err
	}
	set.parent = ctx
	for _, lock := range set.locks {
		lock.parent = ctx
		if o.MaxHold > 0 {
			limit(lock.hold, o.MaxHold)
		}
	}
	defer func() { err = also(err, set.Release(ctx)) }()
	ctx, stop := context.WithCancelCause(c.holding(ctx, set.ordered(), set.holds()))
	defer stop(nil)
	set.end.OnEnd(stop)
	return fn(ctx, set)
}

// limitSet applies Config.MaxHold to a set, if it was acquired.
func (c *Client) limitSet(set *LockSet, err error) (*LockSet, error) {
	if err == nil && c.cfg.MaxHold > 0 {
		for _, lock := range set.locks {
			limit(lock.hold, c.cfg.MaxHold)
		}
	}
	return set, err
}
