package lockmgr

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

var (
	modelSeeds = flag.Int("model.seeds", 2000, "how many random histories the model test runs")
	modelSeed  = flag.Uint64("model.seed", 0, "the one history to run, and to print; 0 for all")
)

const (
	modelEvents = 60 // of a history
	slack       = 8  // grants that the model may take for those of the next tenure, since they came at the same moment
)

// check compares what has happened with the model.
func (h *history) check() {
	synctest.Wait()
	if h.t.Failed() { // the fake has noticed something
		h.t.FailNow()
	}
	h.checkReleases()
	h.checkMany()
	for k, km := range h.keys {
		h.answers(km)
		km.untold = slices.DeleteFunc(km.untold, func(a *attempt) bool { return a.hold.Reason() != nil })
		h.exclusion(k, km)
		if len(km.turn) > 0 {
			<-km.turn // if the turn was not taken the queue would go on at the gate; here it leaves
			km.turn = nil
			if !h.server.unlock(h.queue, gateOf(k), exclusive) {
				h.failf("a turn for key %d without its gate", k.ID)
			}
		}
	}
	h.books()
}

// answers takes the answers to a key's acquires.
func (h *history) answers(km *keyModel) {
	var left []*attempt
	for _, a := range km.waiting {
		switch {
		case !a.ended() && a.cut:
			h.failf("%v goes on after its context has ended", a)
		case !a.ended():
			left = append(left, a)
		case a.err != nil:
			h.note("acquire %d: %v", a.order, a.err)
			h.refusal(km, a.err, a.try, a.cut)
		default:
			h.note("acquire %d is granted with token %d", a.order, a.hold.Token())
			if len(left) > 0 {
				h.failf("%v was granted before %v", a, left[0])
			}
			if l := a.hold.anchor.(*fakeAnchor); l.expired && a.hold.Reason() == nil { //nolint:forcetypeassert // of this test
				h.failf("%v was granted at an anchor that is not trusted", a)
			}
			if km.passes++; km.passes > maxPasses+slack {
				h.failf("%v is grant %d of a tenure", a, km.passes)
			}
			h.granted(km, a)
		}
	}
	km.waiting = left
}

// refusal checks why an acquire has failed.
func (h *history) refusal(km *keyModel, err error, try, cut bool) {
	switch {
	case cut && errors.Is(err, lockerr.NotAcquired) && errors.Is(err, context.Canceled):
	case try && errors.Is(err, lockerr.NotAcquired) && !errors.Is(err, context.Canceled):
	case km.refused && (errors.Is(err, errRefused) || errors.Is(err, errRetry)):
	case h.limited && errors.Is(err, lockerr.TooManyLocks):
	case h.closed && errors.Is(err, lockerr.Closed):
	default:
		h.failf("it must not fail: %v", err)
	}
}

// granted takes a grant, in the order of the grants.
func (h *history) granted(km *keyModel, a *attempt) {
	if a.hold.Reason() != nil {
		return // lost at once
	}
	h.tokens(km, a.mode, a.hold.Token())
	for _, former := range km.untold {
		if former.hold.Reason() == nil && former.hold.anchor != a.hold.anchor {
			h.failf("%v was granted before acquire %d was told of its loss", a, former.order)
		}
	}
	if a.hold.anchor.(*fakeAnchor).gone() { //nolint:forcetypeassert // of this test
		km.untold = append(km.untold, a)
	} else {
		km.holders = append(km.holders, a)
	}
}

// tokens checks a grant's token.
func (h *history) tokens(km *keyModel, mode advisory.Mode, token int64) {
	if token <= km.newest[exclusive] || (mode == exclusive && token <= km.newest[shared]) {
		h.failf("token %d in mode %d after %v", token, mode, km.newest)
	}
	km.newest[mode] = max(km.newest[mode], token)
}

// checkMany takes the answers to tries of several keys.
func (h *history) checkMany() {
	h.many = slices.DeleteFunc(h.many, func(c *manyCall) bool {
		select {
		case <-c.done:
		default:
			return false
		}
		for i, k := range c.keys {
			if c.errs[i] != nil {
				h.refusal(h.keys[k], c.errs[i], true, false)
				continue
			}
			h.attempts++
			a := &attempt{order: h.attempts, key: k, mode: c.mode, call: &call{done: c.done, hold: c.holds[i], cancel: func() {}}}
			h.note("%v is granted as one of many", a)
			h.granted(h.keys[k], a)
		}
		return true
	})
}

// checkReleases checks what releases have told.
func (h *history) checkReleases() {
	h.releases = slices.DeleteFunc(h.releases, func(a *attempt) bool {
		if !a.release.ended() {
			if a.fate == mustLose {
				h.failf("the release of acquire %d outlives its anchor", a.order)
			}
			return false
		}
		err := a.release.err
		h.note("acquire %d is released: %v", a.order, err)
		switch {
		case err == nil && a.fate == mustLose:
			h.failf("the release of acquire %d does not tell of the loss", a.order)
		case err != nil && (!errors.Is(err, lockerr.Lost) || a.fate == holdsOn):
			h.failf("the release of acquire %d: %v", a.order, err)
		}
		return true
	})
}

// exclusion checks that a key's holders have it on the server, in modes that go together, and nobody else has it.
func (h *history) exclusion(k advisory.Key, km *keyModel) {
	writers := 0
	for _, a := range km.holders {
		session := a.hold.anchor.(*fakeAnchor).session //nolint:forcetypeassert // of this test
		switch {
		case a.hold.Err() != nil:
			h.failf("acquire %d has lost what it holds: %v", a.order, a.hold.Err())
		case h.server.held[slot{session, k, a.mode}] == 0:
			h.failf("the server does not know of acquire %d", a.order)
		case !h.server.free(session, k, a.mode):
			h.failf("another process has what acquire %d holds", a.order)
		}
		if a.mode == exclusive {
			writers++
		}
	}
	if writers > 0 && len(km.holders) > 1 {
		h.failf("key %d has %d exclusive holders of %d", k.ID, writers, len(km.holders))
	}
}

// books checks what the manager has written down: what it counts, and that no key waits for an answer without an anchor.
func (h *history) books() {
	m := h.Manager
	m.mu.Lock()
	defer m.mu.Unlock()
	held := 0
	for k, e := range m.keys {
		if e.state.counts() {
			held++
		}
		if (e.state == idle) != (e.anchor == nil) {
			h.failf("key %d: state %d with anchor %v", k.ID, e.state, e.anchor)
		}
		if (e.queue != unqueued) != h.queued[k] || (e.queue == atTurn) != (e.turn != nil) {
			h.failf("key %d: queue state %d, and in the engine's queue: %v", k.ID, e.queue, h.queued[k])
		}
	}
	if held != m.held {
		h.failf("%d keys are held, and %d are counted", held, m.held)
	}
}

func (h *history) run() {
	defer h.tell()
	length := modelEvents
	if h.seed%50 == 0 {
		length *= 10
	}
	for range length {
		h.event()
		h.check()
	}
	h.finish()
}

func TestModel(t *testing.T) { //nolint:tparallel // Seeds waits for its own, so that the whole can be told
	t.Parallel()
	if *modelSeed != 0 {
		synctest.Test(t, func(t *testing.T) {
			h := newHistory(t, *modelSeed)
			h.run()
			t.Log(strings.Join(h.log, "\n"))
		})
		return
	}
	const parts = 4
	var events atomic.Int64
	start := time.Now()
	t.Run("Seeds", func(t *testing.T) {
		for part := range parts {
			t.Run(fmt.Sprint(part), func(t *testing.T) {
				t.Parallel()
				for seed := part + 1; seed <= *modelSeeds; seed += parts {
					synctest.Test(t, func(t *testing.T) {
						h := newHistory(t, uint64(seed)) //nolint:gosec // it is positive
						h.run()
						events.Add(int64(h.events))
					})
				}
			})
		}
	})
	t.Logf("%d seeds, %d events, %.0f events a second", *modelSeeds, events.Load(),
		float64(events.Load())/time.Since(start).Seconds())
}
