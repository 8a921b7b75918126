package semaphore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/sidecar"
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
	var ops []*sidecar.Op
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
	h.note("%s of a lost session is answered", p.op.Statement.Name)
	p.op.Then(p.op)
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
		h.note("%s runs", p.op.Statement.Name)
		h.server.run(p.op)
		p.ran = true
	case how == 1 && !p.ran:
		code := anError(h.random)
		h.note("%s fails with %s", p.op.Statement.Name, code)
		conn.answer(p, code)
	default:
		h.note("%s is answered", p.op.Statement.Name)
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
