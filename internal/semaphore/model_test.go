package semaphore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/ledger"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

var (
	modelSeeds = flag.Int("model.seeds", 2000, "how many random histories the model test runs")
	modelSeed  = flag.Uint64("model.seed", 0, "the one history to run, and to print; 0 for all")
)

const (
	modelTTL    = 3 * time.Second
	modelEvents = 60
)

// acquire is an acquire that the driver has begun, and its permit.
type acquire struct {
	order  int // of arrival
	name   string
	n      int
	try    bool
	cancel context.CancelFunc
	cut    bool // its context has ended

	permit    *Permit
	err       error
	answered  atomic.Bool
	told      bool // the model knows the answer
	releasing bool
	released  chan error
}

func (c *acquire) String() string { return fmt.Sprintf("acquire %d of %d of %s", c.order, c.n, c.name) }

// history drives a manager, with a fake of the database, through random events, and compares it with a model: a
// semaphore is a number of slots and a line, whose first is served when there are slots enough for it.
type history struct {
	t       *testing.T
	random  *rand.Rand
	seed    uint64
	log     []string
	events  int
	manager *Manager
	sidecar *fakeSidecar
	server  *fakeServer
	lines   map[string]*Line
	nextID  int64

	late     []*call // statements of lost sessions whose answers come nevertheless
	acquires []*acquire
	newest   map[string]int64 // tokens, by semaphore's id and slot
	closed   chan struct{}    // when Close has returned; nil before it was called
}

func newHistory(t *testing.T, seed uint64) *history {
	h := &history{
		t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 7)),
		sidecar: &fakeSidecar{changed: make(chan struct{})}, lines: map[string]*Line{}, newest: map[string]int64{},
		server: &fakeServer{semaphores: map[string]*fakeSemaphore{}},
	}
	h.manager = newManager(Config{
		TTL: modelTTL, Pooled: seed%4 == 0,
		Queue: func(gate advisory.Key) Place {
			p := &fakePlace{ready: make(chan struct{}, 1), placed: true}
			for _, s := range h.server.semaphores {
				if s.gate == gate.ID {
					s.place.Store(p)
				}
			}
			return p
		},
		Report: func(event string, err error) {
			if strings.Contains(event, "defect") {
				h.server.complain("%s: %v", event, err)
			}
		},
	}, h.sidecar)
	for i, name := range []string{"a", "b"}[:1+seed%2] {
		s := &fakeSemaphore{id: int32(i + 1), gate: int64(100 + i), capacity: 1 + h.random.IntN(4), held: map[int32]fakeSlot{}}
		h.server.semaphores[name] = s
		h.lines[name] = h.manager.Line(s.id, name, advisory.Key{ID: s.gate}, s.capacity)
	}
	return h
}

func (h *history) failf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf("seed %d: %s\n%s\nagain: go test -run TestModel -model.seed=%d ./internal/semaphore",
		h.seed, fmt.Sprintf(format, args...), strings.Join(h.log, "\n"), h.seed)
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf("%8.3f ", time.Since(epoch).Seconds())+fmt.Sprintf(format, args...))
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of the clock in a bubble

// aLine is one of the semaphores.
func (h *history) aLine() string { return []string{"a", "b"}[h.random.IntN(len(h.lines))] }

// begin begins an acquire, at the very moment at which another one has ended, if there is one.
func (h *history) begin(name string, n int, try bool, after *acquire) {
	ctx, cancel := context.WithCancel(context.Background())
	c := &acquire{order: len(h.acquires), name: name, n: n, try: try, cancel: cancel}
	h.note("%v, try %v", c, try)
	h.acquires = append(h.acquires, c)
	go func() {
		for after != nil && !after.answered.Load() {
			runtime.Gosched()
		}
		c.permit, c.err = h.lines[name].Acquire(ctx, n, try)
		c.answered.Store(true)
	}()
}

// some returns one of the acquires of which something is true, or nil.
func (h *history) some(is func(*acquire) bool) *acquire {
	var all []*acquire
	for _, c := range h.acquires {
		if is(c) {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[h.random.IntN(len(all))]
}

func (c *acquire) waits() bool { return !c.told }
func (c *acquire) holds() bool { return c.told && c.err == nil && !c.releasing }

func (h *history) release(c *acquire) {
	h.note("release of %v", c)
	c.releasing, c.released = true, make(chan error, 1)
	go func() { c.released <- c.permit.Release() }()
}

func (h *history) connect() {
	if h.sidecar.conn != nil {
		return
	}
	h.nextID++
	id := h.nextID
	if h.manager.cfg.Pooled {
		id = -1
	}
	h.note("a session is opened")
	conn := &fakeConn{id: id, server: h.server}
	h.sidecar.set(conn, false)
	h.manager.opened(conn)
}

func (h *history) disconnect() {
	conn := h.sidecar.conn
	if conn == nil {
		return
	}
	h.note("the session is lost")
	for p := conn.pick(h.random); p != nil && h.random.IntN(2) == 0; p = conn.pick(h.random) {
		if !p.ran {
			h.server.run(p.op) // the answer is lost, not the statement
			p.ran = true
		}
	}
	var ops []*link.Op
	for _, p := range conn.cut() {
		if p.ran && h.random.IntN(2) == 0 {
			h.late = append(h.late, p) // its reader had it already
		} else {
			ops = append(ops, p.op)
		}
	}
	h.sidecar.set(nil, true)
	if !h.manager.cfg.Pooled {
		h.server.expire(conn.id)
	}
	h.manager.lost(conn, errCut)
	answerLost(ops, errCut)
}

// idle closes the session if the manager can do without one.
func (h *history) idle() {
	conn := h.sidecar.conn
	if conn == nil || len(conn.pending) > 0 || !h.manager.letGo(conn) {
		return
	}
	h.note("the session is closed for want of use")
	for _, c := range h.acquires {
		if c.holds() && c.permit.Err() == nil {
			h.failf("%v needs the session", c)
		}
	}
	conn.cut()
	h.sidecar.set(nil, false)
	h.server.expire(conn.id)
}

// belated reads the answer to a statement of a session that was lost.
func (h *history) belated() bool {
	if len(h.late) == 0 {
		return false
	}
	p := h.late[0]
	h.late = h.late[1:]
	h.note("%s of a lost session is answered", p.op.Call.Name)
	p.op.Owner.(ledger.Completion)(p.op)
	return true
}

// statement takes a statement that is under way further.
func (h *history) statement(how int) {
	if h.random.IntN(3) == 0 && h.belated() {
		return
	}
	conn := h.sidecar.conn
	if conn == nil {
		return
	}
	p := conn.pick(h.random)
	switch {
	case p == nil:
	case how == 0 && !p.ran:
		h.note("%s runs", p.op.Call.Name)
		h.server.run(p.op)
		p.ran = true
	case how == 1 && !p.ran:
		code := anError(h.random)
		h.note("%s fails with %s", p.op.Call.Name, code)
		conn.answer(p, code)
	default:
		h.note("%s is answered", p.op.Call.Name)
		conn.answer(p, "")
	}
}

func (h *history) resize(name string, capacity int, here bool) {
	h.note("%s is resized to %d, here: %v", name, capacity, here)
	s := h.server.semaphores[name]
	s.capacity = capacity
	if here {
		h.lines[name].Resized(capacity)
	} else {
		h.manager.notified(fmt.Sprint(resizedPrefix, s.gate))
	}
}

// remake removes a semaphore, and makes it anew.
func (h *history) remake(name string) {
	s := h.server.semaphores[name]
	h.note("%s is removed and made anew", name)
	s.id += 10
	s.held = map[int32]fakeSlot{}
}

// elsewhere has other processes take or free slots.
func (h *history) elsewhere(name string) {
	s := h.server.semaphores[name]
	for slot, one := range s.held {
		if one.holder == others {
			h.note("another process frees a slot of %s", name)
			delete(s.held, slot)
			if s.foreign || s.place.Load() != nil {
				h.manager.notified(fmt.Sprint(freedPrefix, s.gate))
			}
			return
		}
	}
	if s.free() > 0 && !s.ours() {
		h.note("another process takes a slot of %s", name)
		h.server.token += tokensPerClaim
		s.occupy(others, h.server.token, time.Now().Add(time.Hour))
	}
}

func (h *history) turns(name string, give bool) {
	s := h.server.semaphores[name]
	p := s.place.Load()
	switch {
	case p == nil:
	case !give:
		h.note("the turn at the gate of %s is over", name)
		p.Pass()
	case !s.foreign:
		h.note("a turn at the gate of %s", name)
		p.turn()
	}
}

func (h *history) sleep(d time.Duration) {
	h.note("%v pass", d)
	time.Sleep(d)
	h.server.expire(0)
}

// event is one random event.
func (h *history) event() {
	h.events++
	name := h.aLine()
	switch e := h.random.IntN(100); {
	case e < 16:
		h.begin(name, 1+h.random.IntN(3), false, nil)
	case e < 22:
		h.begin(name, 1+h.random.IntN(2), true, nil)
	case e < 28:
		if c := h.some((*acquire).waits); c != nil {
			h.note("%v is cancelled", c)
			c.cut = true
			c.cancel()
			switch h.random.IntN(4) { // they race with it
			case 0:
				h.statement(2)
				h.statement(2)
			case 1: // the head may be called off, and find somebody nevertheless
				h.begin(c.name, 1+h.random.IntN(3), false, c)
			}
		}
	case e < 42:
		if c := h.some((*acquire).holds); c != nil {
			h.release(c)
		}
	case e < 62:
		h.statement(2)
	case e < 66:
		h.statement(0)
	case e < 70:
		h.statement(1)
	case e < 72:
		h.disconnect()
	case e < 76:
		h.connect()
	case e < 77:
		if h.sidecar.conn == nil {
			h.note("no session can be opened")
			h.manager.failed(errors.New("away"))
		}
	case e < 84:
		h.turns(name, true)
	case e < 86:
		h.turns(name, false)
	case e < 92:
		h.sleep(time.Duration(1+h.random.IntN(250)) * time.Millisecond)
	case e < 93:
		h.sleep(modelTTL / time.Duration(1+h.random.IntN(4)))
	case e < 95:
		h.resize(name, 1+h.random.IntN(4), h.random.IntN(2) == 0)
	case e < 96:
		h.remake(name)
	case e < 97:
		h.idle()
	case e < 98:
		s := h.server.semaphores[name]
		if s.foreign = !s.foreign && !s.ours(); s.foreign {
			h.note("another process stands at the gate of %s", name)
		}
	default:
		h.elsewhere(name)
	}
}

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
	const parts = 4
	var events atomic.Int64
	start := time.Now()
	t.Run("Seeds", func(t *testing.T) {
		for part := range parts {
			t.Run(fmt.Sprint(part), func(t *testing.T) {
				t.Parallel()
				for seed := part + 1; seed <= *modelSeeds; seed += parts {
					synctest.Test(t, func(t *testing.T) {
						h := newHistory(t, uint64(seed))
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
