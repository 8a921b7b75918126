package desk

import (
	"context"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// TryMany tries every key on its own, all in one round trip a link. For each key there is either a hold or an
// error. It does not wait for other holders; a key that is given twice excludes itself like any other. When ctx
// ends nothing is held, and every error says so.
func (d *Desk) TryMany(ctx context.Context, keys []advisory.Key, mode advisory.Mode) ([]*Hold, []error) {
	return d.tryMany(ctx, keys, mode, false)
}

// TakeMany is TryMany for keys at whose gates the process stands first, in a session of the room: the turn is theirs
// for whom it stands there, so nobody who waits for one of the keys in this process is before them.
func (d *Desk) TakeMany(ctx context.Context, keys []advisory.Key, mode advisory.Mode) ([]*Hold, []error) {
	return d.tryMany(ctx, keys, mode, true)
}

func (d *Desk) tryMany(ctx context.Context, keys []advisory.Key, mode advisory.Mode, ours bool) ([]*Hold, []error) {
	holds, errs := make([]*Hold, len(keys)), make([]error, len(keys))
	waiters := make([]*waiter, len(keys))
	if err := ctx.Err(); err != nil {
		d.endedAll(ctx, errs)
		return holds, errs
	}
	a := actions{now: time.Now()}
	d.mu.Lock()
	for i, key := range keys {
		w := &waiter{mode: mode, try: true, ours: ours}
		if err := d.joinTry(key, w, ours, &a); err != nil {
			errs[i] = err
			continue
		}
		waiters[i] = w
	}
	d.mu.Unlock()
	d.runAll(ctx, &a, func() bool { return allAnswered(waiters) })
	for i, w := range waiters {
		if w == nil {
			continue
		}
		select {
		case <-w.ch:
		case <-ctx.Done():
			if d.abandon(keys[i], w) {
				continue
			}
			<-w.ch // it was answered meanwhile
		}
		if w.err == nil {
			holds[i] = &w.hold
			continue
		}
		errs[i] = w.err
		d.signals.Put(w.ch)
	}
	if ctx.Err() != nil { // as in Acquire: the caller has stopped waiting
		d.GiveBackMany(holds) //nolint:contextcheck // ctx has ended
		clear(holds)
		d.endedAll(ctx, errs)
	}
	return holds, errs
}

// joinTry puts a try into its key's queue, if it can be answered without waiting for others. If the gate is ours it
// comes first in the queue, as long as nobody in this process has the key. The caller holds the mutex.
func (d *Desk) joinTry(key advisory.Key, w *waiter, ours bool, a *actions) error {
	if d.closed {
		return lockerr.Closed
	}
	e := d.entryFor(key)
	if !e.admits(w.mode) && (!ours || (e.phase != idle && e.phase != asking)) {
		return lockerr.NotAcquired
	}
	w.ch = d.signals.Get().(chan struct{}) //nolint:forcetypeassert // there is nothing else in it
	if ours {
		e.unshift(w)
	} else {
		e.push(w)
	}
	d.advance(e, a)
	return nil
}

func (d *Desk) endedAll(ctx context.Context, errs []error) {
	for i := range errs {
		errs[i] = d.Ended(ctx)
	}
}

func allAnswered(waiters []*waiter) bool {
	return !slices.ContainsFunc(waiters, func(w *waiter) bool { return w != nil && len(w.ch) == 0 })
}

// runAll carries out a step with operations on several links, one submission each, and reads the answers of one
// of them until done.
func (d *Desk) runAll(ctx context.Context, a *actions, done func() bool) {
	var first *seat
	if len(a.ops) > 0 {
		first = a.ops[0].seat
	}
	rank := map[*seat]int{}
	for _, s := range a.ops {
		if _, known := rank[s.seat]; !known {
			rank[s.seat] = len(rank)
		}
	}
	slices.SortStableFunc(a.ops, func(x, y submission) int { return rank[x.seat] - rank[y.seat] })
	d.run(a, first)
	if first != nil {
		first.link.Help(ctx, done)
	}
}

// ReleaseMany is [Hold.Release] for many, in one round trip a link. A nil hold has a nil error.
func (d *Desk) ReleaseMany(holds []*Hold) []error {
	errs := make([]error, len(holds))
	mine, unlocking := make([]bool, len(holds)), make([]bool, len(holds))
	a := actions{now: time.Now()}
	for i, h := range holds {
		if h == nil {
			continue
		}
		if mine[i] = h.claim(); mine[i] {
			unlocking[i], errs[i] = h.part(true, &a)
		}
	}
	d.runAll(context.Background(), &a, func() bool {
		for i, h := range holds {
			if unlocking[i] && len(h.ch) == 0 {
				return false
			}
		}
		return true
	})
	for i, h := range holds {
		switch {
		case h == nil:
		case !mine[i]:
			errs[i] = h.Release() // somebody else's, or the second time
		default:
			if unlocking[i] {
				<-h.ch
				errs[i] = h.result
			}
			h.settle(errs[i])
		}
	}
	return errs
}

// GiveBackMany is [Hold.GiveBack] for many; nil holds are left out.
func (d *Desk) GiveBackMany(holds []*Hold) {
	a := actions{now: time.Now()}
	for _, h := range holds {
		if h != nil {
			_, _ = h.part(false, &a)
		}
	}
	d.runAll(context.Background(), &a, func() bool { return true })
}
