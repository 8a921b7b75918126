package lockmgr

import (
	"slices"
	"testing/synctest"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// event is one random event, or several at the same moment.
func (h *history) event() {
	h.events++
	k, n := h.aKey(), h.random.IntN(100)
	l, open := oneOf(h, h.opened())
	switch km := h.keys[k]; {
	case n < 78:
		h.common(k, n)
	case n < 84:
		h.turn(k)
	case n < 86:
		h.note("a sweep")
		h.Sweep([]advisory.Key{k, {ID: 0}})
	case n < 87:
		h.sleep(time.Duration(h.random.IntN(1200)) * time.Millisecond)
	case n < 88:
		if a, ok := oneOf(h, km.holders); ok {
			h.forfeit(a)
		}
	case n < 89:
		h.tryAll(h.mode(), h.random.IntN(2) == 0)
	case n < 90:
		h.handOvers(k, h.mode())
	case n < 92:
		h.troubles(l, open, k)
	case n < 93:
		h.dial([]error{nil, nil, errCut}[h.random.IntN(3)])
	case n < 94:
		if h.limited {
			h.pickFails([]error{nil, nil, errTooMany}[h.random.IntN(3)])
		}
	case n < 98:
		h.race(k)
	default:
		h.quiet()
	}
	synctest.Wait()
}

// common is an event of those that happen all the time.
func (h *history) common(k advisory.Key, n int) {
	km := h.keys[k]
	l, open := oneOf(h, h.opened())
	switch {
	case n < 24:
		if len(km.waiting) < 12 {
			h.begin(k, h.mode(), h.random.IntN(4) == 0)
		}
	case n < 42:
		if a, ok := oneOf(h, km.holders); ok {
			h.giveUp(a)
		}
	case n < 48:
		if a, ok := oneOf(h, km.waiting); ok {
			h.cut(a)
		}
	case n < 56:
		if open {
			h.send(l, h.random.IntN(8) == 0)
		}
	case n < 64:
		if open {
			h.land(l)
		}
	case n < 71:
		if open {
			h.send(l, false)
			h.land(l)
		}
	default:
		h.stranger(k, h.mode(), h.random.IntN(4))
	}
}

// troubles are those of an anchor.
func (h *history) troubles(l *fakeAnchor, open bool, k advisory.Key) {
	late := slices.IndexFunc(h.flights, func(f flight) bool { return f.anchor.cause != nil })
	switch n := h.random.IntN(8); {
	case late >= 0 && n < 4: // an answer that was on its way when the anchor was lost
		h.land(h.flights[late].anchor)
	case !open:
	case n == 0:
		h.expire(l)
	case n == 1:
		h.note("anchor %d has unread news of its end", l.session)
		l.leave(errCut)
		h.distrust(l)
	case n < 4:
		h.loseKey(l, k)
	default:
		h.fail(l)
	}
}

// race has several things happen at the same moment. No two of them are acquires of one key, so that the order of arrival is known.
func (h *history) race(k advisory.Key) {
	h.note("at the same moment:")
	h.racing = true
	km := h.keys[k]
	a, waits := oneOf(h, km.waiting)
	b, held := oneOf(h, km.holders)
	l, open := oneOf(h, h.opened())
	if open && h.random.IntN(3) > 0 {
		h.send(l, false)
	}
	if h.random.IntN(2) == 0 && len(km.waiting) < 12 {
		h.begin(k, h.mode(), h.random.IntN(4) == 0)
	}
	if waits && h.random.IntN(2) == 0 {
		h.cut(a)
	}
	if held && h.random.IntN(2) == 0 {
		h.giveUp(b)
	}
	if open && h.random.IntN(3) > 0 {
		h.land(l)
	}
	if open && h.random.IntN(6) == 0 {
		h.fail(l)
	}
	h.racing = false
	synctest.Wait()
	h.note("so much for that")
}

// handOvers uses the tenure up, or most of it.
func (h *history) handOvers(k advisory.Key, mode advisory.Mode) {
	h.note("many hand-overs of key %d", k.ID)
	km := h.keys[k]
	for range maxPasses/2 + h.random.IntN(maxPasses) {
		if len(km.waiting) < 2 {
			h.begin(k, mode, false)
		}
		h.answerAll()
		h.check()
		if len(km.holders) > 0 && (mode == exclusive || len(km.holders) > 2) {
			h.giveUp(km.holders[0])
		}
	}
}

// fail ends an anchor, with round trips under way or not.
func (h *history) fail(l *fakeAnchor) {
	h.note("anchor %d is lost", l.session)
	h.doomed(func(a *attempt) bool { return a.hold.anchor == engine.Anchor(l) })
	again := h.random.IntN(2) == 0
	h.start(func() {
		l.Fail(errCut)
		if again {
			h.Lost(l, errCut)
		}
	})
	synctest.Wait()
	h.told(func(a *attempt) bool { return a.hold.anchor == engine.Anchor(l) })
	if h.random.IntN(2) == 0 { // else its reader has them already
		h.flights = slices.DeleteFunc(h.flights, func(f flight) bool { return f.anchor == l })
	}
}

// doomed notes which of the releases under way cannot end well.
func (h *history) doomed(is func(*attempt) bool) {
	for _, a := range h.releases {
		if is(a) && !a.release.ended() && a.fate == holdsOn {
			a.fate = mustLose
			if h.racing {
				a.fate = mayLose
			}
		}
	}
}

// told checks that the holders know of a loss, and forgets them.
func (h *history) told(is func(*attempt) bool) {
	for _, km := range h.keys {
		km.holders = slices.DeleteFunc(km.holders, func(a *attempt) bool {
			if is(a) && a.hold.Reason() == nil {
				h.failf("acquire %d was not told of its loss", a.order)
			}
			return is(a)
		})
	}
}

// loseKey has the engine lose a single key of an anchor.
func (h *history) loseKey(l *fakeAnchor, k advisory.Key) {
	if l.gone() {
		return
	}
	h.note("anchor %d loses key %d", l.session, k.ID)
	is := func(a *attempt) bool { return a.key == k && a.hold.anchor == engine.Anchor(l) }
	h.doomed(is)
	l.mu.Lock()
	l.queue = slices.DeleteFunc(l.queue, func(r *engine.Request) bool { return r.Key == k })
	l.mu.Unlock()
	h.Lost(l, errCut, k)
	h.told(is)
	for _, mode := range []advisory.Mode{exclusive, shared} {
		for h.server.unlock(l.session, k, mode) {
		}
	}
	synctest.Wait()
}

// expire ends the trust in an anchor; nobody says so.
func (h *history) expire(l *fakeAnchor) {
	h.note("anchor %d is no longer trusted", l.session)
	l.setExpired()
	h.distrust(l)
}

// distrust notes that the holders at an anchor must be told of their loss before somebody else is granted their keys.
func (h *history) distrust(l *fakeAnchor) {
	for _, a := range h.releases {
		if a.hold.anchor == engine.Anchor(l) {
			a.fate = max(a.fate, mayLose)
		}
	}
	for _, km := range h.keys {
		km.holders = slices.DeleteFunc(km.holders, func(a *attempt) bool {
			is := a.hold.anchor == engine.Anchor(l)
			if is {
				km.untold = append(km.untold, a)
			}
			return is
		})
	}
}
