package lockmgr

import (
	"context"
	"errors"
	"testing/synctest"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// quiet has everything answered, and checks that nothing is left undone.
func (h *history) quiet() {
	h.note("all is answered")
	h.dial(nil)
	h.pickFails(nil)
	for _, l := range h.opened() {
		if l.gone() {
			h.fail(l)
		}
	}
	h.sleep(200 * time.Millisecond) // an anchor is opened
	h.answerAll()
	h.check()
	for k, km := range h.keys {
		if km.turn != nil {
			h.failf("the turn for key %d is never answered", k.ID)
		}
		for _, a := range km.waiting {
			if a.try {
				h.failf("%v is left hanging", a)
			}
		}
		if len(km.waiting) == 0 && len(km.holders) == 0 {
			if e := h.Manager.keys[k]; e != nil || h.queued[k] {
				h.failf("key %d is not forgotten", k.ID)
			}
			for s := range h.server.held {
				if s.key == k && s.session != h.other {
					h.failf("key %d is not given back", k.ID)
				}
			}
		}
		h.waitsForReason(k, km)
		km.refused = false
	}
}

// answerAll answers everything, also what answers lead to.
func (h *history) answerAll() {
	rounds := 0
	for again := true; again; rounds++ {
		if rounds > 1000 {
			h.failf("the manager never comes to rest")
		}
		again = len(h.flights) > 0
		for len(h.flights) > 0 {
			h.land(h.flights[0].anchor)
		}
		for _, l := range h.opened() {
			h.send(l, false)
		}
		again = again || len(h.flights) > 0
		synctest.Wait()
	}
}

// waitsForReason checks that the first in line cannot have the key, or would get it with the next sweep.
func (h *history) waitsForReason(k advisory.Key, km *keyModel) {
	h.check()
	if len(km.waiting) == 0 || len(km.holders) > 0 || km.turn != nil || h.limited {
		return
	}
	first := km.waiting[0]
	if !h.server.free(0, k, first.mode) || !h.server.free(0, gateOf(k), exclusive) {
		return
	}
	if !h.queued[k] {
		h.failf("%v waits for nothing", first)
	}
	h.note("a sweep of key %d, which is free", k.ID)
	h.Sweep([]advisory.Key{k})
	h.answerAll()
	if !first.ended() || first.err != nil {
		h.failf("%v does not get a free key", first)
	}
	h.check()
}

// finish ends a history: everybody is served, or the manager is closed at whatever moment it is.
func (h *history) finish() {
	if h.random.IntN(3) > 0 {
		h.server.drop(h.other)
		h.quiet()
		for i := 0; i < 1000 && h.busy(); i++ {
			for k, km := range h.keys {
				for len(km.holders) > 0 {
					h.giveUp(km.holders[0])
				}
				h.Sweep([]advisory.Key{k})
				h.answerAll()
				h.turn(k)
				h.check()
				h.server.drop(h.other)
			}
		}
		if h.busy() {
			h.failf("somebody is left hanging")
		}
		h.quiet()
	}
	h.close()
}

func (h *history) busy() bool {
	for _, km := range h.keys {
		if len(km.waiting)+len(km.holders) > 0 {
			return true
		}
	}
	return len(h.many)+len(h.releases) > 0
}

// close ends the manager.
func (h *history) close() {
	h.note("close")
	h.closed = true
	var holders []*attempt
	for _, km := range h.keys {
		holders = append(append(holders, km.holders...), km.untold...)
		km.holders = nil
	}
	for _, a := range h.releases {
		a.fate = mayLose
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.Manager.Close(context.Background()); err != nil {
			h.t.Error(err)
		}
	}()
	<-done
	for len(h.flights) > 0 {
		h.land(h.flights[0].anchor)
	}
	h.check()
	for _, a := range holders {
		if a.hold.Reason() == nil {
			h.failf("acquire %d holds a key of a manager that is closed", a.order)
		}
	}
	if h.busy() || len(h.queued) > 0 || len(h.Manager.keys) > 0 {
		h.failf("something outlives the manager: %v, %v", h.queued, h.Manager.keys)
	}
	if _, err := h.Acquire(context.Background(), advisory.Named{Key: h.aKey()}, shared, false); !errors.Is(err, lockerr.Closed) {
		h.failf("closed: %v", err)
	}
}
