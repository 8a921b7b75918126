package semaphore

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

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

var (
	modelSeeds = flag.Int("model.seeds", 0, "how many random histories the model test runs; 0 for 2000, and a fifth of that with -short")
	modelSeed  = flag.Uint64("model.seed", 0, "the one history to run, and to print; 0 for all")
)

// check compares what has happened with the model.
func (h *history) check() {
	synctest.Wait()
	if violation := h.server.violation.Load(); violation != nil {
		h.failf("%s", *violation)
	}
	first := map[string]*acquire{} // of those who wait
	for _, c := range h.acquires {
		answered := c.answered.Load()
		switch {
		case !answered && c.cut:
			h.failf("%v goes on after its context has ended", c)
		case !answered && first[c.name] == nil && !c.try:
			first[c.name] = c
		case answered && !c.told:
			c.told = true
			if c.err != nil {
				h.note("%v: %v", c, c.err)
				h.refused(c)
				continue
			}
			h.note("%v: granted %v", c, c.permit.slots)
			if ahead := first[c.name]; ahead != nil {
				h.failf("%v has passed %v", c, ahead)
			}
			h.granted(c)
		}
	}
	h.exclusion()
	h.manager.mu.Lock()
	defer h.manager.mu.Unlock()
	for name, l := range h.lines {
		if l.state.hasHead() && !l.state.asking() && l.waits > 0 && l.waits != l.waiters.Len() {
			h.failf("a try of %s waits for a head that is away", name)
		}
	}
}

// refused checks why an acquire has failed.
func (h *history) refused(c *acquire) {
	switch {
	case c.cut && errors.Is(c.err, context.Canceled), errors.Is(c.err, lockerr.NotAcquired) && c.try,
		errors.Is(c.err, lockerr.Closed) && h.closed != nil, errors.Is(c.err, lockerr.NotFound),
		strings.Contains(c.err.Error(), "made up"):
	case errors.Is(c.err, lockerr.OverCapacity) && c.n > 1:
	default:
		h.failf("%v must not fail: %v", c, c.err)
	}
}

// granted checks that the token is the newest that any of the slots had.
func (h *history) granted(c *acquire) {
	semaphore, _, slots, _ := c.permit.Claim()
	if len(slots) != c.n {
		h.failf("%v got %v", c, slots)
	}
	for _, slot := range slots {
		where := fmt.Sprint(semaphore, "/", slot)
		if c.permit.Token() <= h.newest[where] {
			h.failf("token %d of slot %s after %d", c.permit.Token(), where, h.newest[where])
		}
		h.newest[where] = c.permit.Token()
	}
}

// exclusion checks that the server holds for each permit what it believes to hold, and nobody has it besides.
func (h *history) exclusion() {
	owner := map[string]*acquire{}
	for _, c := range h.acquires {
		if c.releasing {
			h.result(c)
		}
		if !c.holds() || c.permit.Err() != nil {
			continue
		}
		semaphore, holder, slots, base := c.permit.Claim()
		s := h.server.byID(semaphore)
		for _, slot := range slots {
			where := fmt.Sprint(semaphore, "/", slot)
			if other := owner[where]; other != nil {
				h.failf("%v and %v both have slot %s", c, other, where)
			}
			owner[where] = c
			if s == nil {
				continue // it was removed, which the next renewal finds
			}
			if held := s.held[slot]; held.holder != holder || held.token != base {
				h.failf("%v believes in slot %s, which the server knows as %+v", c, where, held)
			}
		}
	}
}

// result checks what a release returned.
func (h *history) result(c *acquire) {
	select {
	case err := <-c.released:
		c.released <- err
		if err != nil && !errors.Is(err, lockerr.Lost) {
			h.failf("release of %v: %v", c, err)
		}
	default:
	}
}

// quiet lets everything under way end, with a server that works and a gate where nobody else stands.
func (h *history) quiet(step func()) {
	h.note("quiet")
	for _, s := range h.server.semaphores {
		s.foreign = false
	}
	for range 60 {
		if h.closed == nil && h.sidecar.wanted {
			h.connect()
			synctest.Wait()
		}
		for h.belated() {
		}
		answers := 0
		for conn := h.sidecar.conn; conn != nil; synctest.Wait() {
			p := conn.pick(h.random)
			if p == nil {
				break
			}
			conn.answer(p, "")
			if answers++; answers > 1000 {
				h.failf("the lines ask without end")
			}
		}
		for _, payload := range h.sidecar.take() {
			h.manager.notified(payload)
		}
		for name := range h.lines {
			if p := h.server.semaphores[name].place.Load(); p != nil {
				p.turn()
			}
		}
		h.check()
		step()
		time.Sleep(100 * time.Millisecond)
		h.server.expire(0)
	}
	h.check()
}

// settled compares the state in which nothing is under way with that of the model.
func (h *history) settled() {
	for name, s := range h.server.semaphores {
		for slot, one := range s.held {
			if one.holder == others {
				continue
			}
			if !slices.ContainsFunc(h.acquires, func(c *acquire) bool {
				semaphore, _, slots, _ := c.claimed()
				return c.holds() && semaphore == s.id && slices.Contains(slots, slot)
			}) {
				h.failf("slot %d of %s is held for nobody", slot, name)
			}
		}
		for _, c := range h.acquires {
			if c.name != name || c.told {
				continue
			}
			if c.try || c.n > s.capacity || c.n <= s.free() {
				h.failf("%v waits, and %d of %d are free", c, s.free(), s.capacity)
			}
			break // those behind the first wait for it
		}
	}
	for _, c := range h.acquires {
		switch {
		case c.releasing && len(c.released) == 0:
			h.failf("the release of %v does not end", c)
		case c.holds() && c.permit.Err() == nil && h.server.byID(c.permit.claim.semaphore) == nil:
			h.failf("%v is held, and its semaphore was removed long ago", c)
		}
	}
	h.manager.mu.Lock()
	defer h.manager.mu.Unlock()
	if !h.manager.returns.none() {
		h.failf("slots are never freed")
	}
	for name, l := range h.lines {
		waits := slices.ContainsFunc(h.acquires, func(c *acquire) bool { return c.name == name && c.waits() })
		if p := h.server.semaphores[name].place.Load(); l.state.hasHead() != waits || (p != nil && p.queues() && !waits) {
			h.failf("the state of %s is %s, and somebody waits: %v", name, stateNames[l.state], waits)
		}
	}
}

func (c *acquire) claimed() (semaphore int32, holder int64, slots []int32, base int64) {
	if c.permit == nil {
		return 0, 0, nil, 0
	}
	return c.permit.Claim()
}

// close ends the client, at whatever moment it is.
func (h *history) close() {
	h.note("close")
	h.closed = make(chan struct{})
	go func() {
		defer close(h.closed)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		h.manager.Close(ctx)
	}()
	if h.random.IntN(2) == 0 {
		h.check()
		h.quiet(func() {})
	}
	h.check()
	h.sleep(time.Second) // Close gives up
	<-h.closed
	h.disconnect()
	for h.belated() {
	}
	h.manager.Wait()
	h.check()
	for _, c := range h.acquires {
		switch {
		case !c.told:
			h.failf("%v outlives the client", c)
		case c.err == nil && c.permit.Err() == nil:
			h.failf("%v is held by a client that is closed", c)
		case c.releasing && len(c.released) == 0:
			h.failf("the release of %v outlives the client", c)
		}
		c.cancel()
	}
	m := h.manager
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life != ended || m.running != 0 {
		h.failf("life %d with %d goroutines after the end", m.life, m.running)
	}
}

// run is a whole history.
func (h *history) run() {
	if h.random.IntN(2) == 0 {
		h.connect()
	}
	for range modelEvents {
		h.event()
		h.check()
	}
	if h.random.IntN(4) > 0 {
		h.quiet(func() {})
		h.settled()
		h.quiet(func() { // all are served, one after the other
			for _, c := range h.acquires {
				if c.holds() {
					h.release(c)
				}
			}
			for name, s := range h.server.semaphores {
				if s.capacity < 3 {
					h.resize(name, 3, true)
				}
				for slot, one := range s.held {
					if one.holder == others {
						delete(s.held, slot)
					}
				}
			}
		})
		h.settled()
	}
	h.close()
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
	seeds := *modelSeeds
	if seeds == 0 {
		seeds = testkit.Rounds(2000)
	}
	const parts = 4
	var events atomic.Int64
	start := time.Now()
	t.Run("Seeds", func(t *testing.T) {
		for part := range parts {
			t.Run(fmt.Sprint(part), func(t *testing.T) {
				t.Parallel()
				for seed := part + 1; seed <= seeds; seed += parts {
					synctest.Test(t, func(t *testing.T) {
						h := newHistory(t, uint64(seed))
						h.run()
						events.Add(int64(h.events))
					})
				}
			})
		}
	})
	t.Logf("%d seeds, %d events, %.0f events a second", seeds, events.Load(),
		float64(events.Load())/time.Since(start).Seconds())
}
