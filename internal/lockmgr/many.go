package lockmgr

import (
	"context"
	"slices"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// TryMany tries every key on its own, all in one round trip an anchor. For each key there is either a hold or an
// error. It does not wait for other holders; a key that is given twice excludes itself like any other. When ctx
// ends nothing is held, and every error says so.
func (m *Manager) TryMany(ctx context.Context, keys []advisory.Named, mode advisory.Mode) ([]*Hold, []error) {
	return m.tryMany(ctx, keys, mode, false)
}

// TakeMany is TryMany for keys for which the engine has a turn, see [engine.Gathering]: it is for those who gather, so nobody
// who waits for one of the keys in this process comes before them.
func (m *Manager) TakeMany(ctx context.Context, keys []advisory.Named, mode advisory.Mode) ([]*Hold, []error) {
	return m.tryMany(ctx, keys, mode, true)
}

func (m *Manager) tryMany(ctx context.Context, keys []advisory.Named, mode advisory.Mode, ours bool) ([]*Hold, []error) {
	holds, errs := make([]*Hold, len(keys)), make([]error, len(keys))
	waiters := make([]*waiter, len(keys))
	if err := ctx.Err(); err != nil {
		m.endedAll(ctx, errs)
		return holds, errs
	}
	for i := range waiters {
		waiters[i] = m.newWaiter(ctx, mode, true, ours)
	}
	a := m.step()
	m.mu.Lock()
	for i, key := range keys {
		if err := m.enter(key, waiters[i], a); err != nil {
			errs[i] = m.without(waiters[i], err)
			waiters[i] = nil
		}
	}
	m.mu.Unlock()
	m.runAll(ctx, a, func() bool { return allAnswered(waiters) })
	for i, w := range waiters {
		if w == nil {
			continue
		}
		keep := func(w *waiter) { holds[i] = &w.Value.hold }
		switch err := w.Wait(ctx, m.abandon, keep); {
		case err == nil:
			keep(w)
		case holds[i] == nil:
			errs[i] = m.without(w, err)
		}
	}
	if ctx.Err() != nil { // as in Acquire: the caller has stopped waiting
		m.GiveBackMany(holds) //nolint:contextcheck // ctx has ended
		clear(holds)
		m.endedAll(ctx, errs)
	}
	return holds, errs
}

func (m *Manager) endedAll(ctx context.Context, errs []error) {
	for i := range errs {
		errs[i] = m.Ended(ctx)
	}
}

func allAnswered(waiters []*waiter) bool {
	return !slices.ContainsFunc(waiters, func(w *waiter) bool { return w != nil && !w.Woken() })
}

// runAll carries out a step with requests at several anchors, one submission each, and reads the answers of one
// of them until done.
func (m *Manager) runAll(ctx context.Context, a *actions, done func() bool) {
	if len(a.requests) == 0 {
		m.run(a, nil)
		return
	}
	first := a.anchors[0]
	if slices.ContainsFunc(a.anchors, func(anchor engine.Anchor) bool { return anchor != first }) {
		a.byAnchor()
	}
	m.run(a, first)
	first.Help(ctx, done)
}

// byAnchor puts the requests of each anchor together, without changing their order.
func (a *actions) byAnchor() {
	requests, anchors := make([]*engine.Request, 0, len(a.requests)), make([]engine.Anchor, 0, len(a.requests))
	for len(requests) < len(a.requests) {
		var anchor engine.Anchor
		for i, r := range a.requests {
			if r == nil || (anchor != nil && a.anchors[i] != anchor) {
				continue
			}
			anchor = a.anchors[i]
			requests, anchors = append(requests, r), append(anchors, anchor)
			a.requests[i] = nil
		}
	}
	a.requests, a.anchors = requests, anchors
}

// ReleaseMany is [Hold.Release] for many, in one round trip an anchor. A nil hold has a nil error.
func (m *Manager) ReleaseMany(holds []*Hold) []error {
	errs := make([]error, len(holds))
	mine, unlocking := make([]bool, len(holds)), make([]bool, len(holds))
	a := m.step()
	for i, h := range holds {
		if h == nil {
			continue
		}
		if mine[i] = h.claim(); mine[i] {
			unlocking[i], errs[i] = h.part(true, a)
		}
	}
	m.runAll(context.Background(), a, func() bool {
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
func (m *Manager) GiveBackMany(holds []*Hold) {
	a := m.step()
	for _, h := range holds {
		if h != nil {
			_, _ = h.part(false, a)
		}
	}
	m.runAll(context.Background(), a, func() bool { return true })
}
