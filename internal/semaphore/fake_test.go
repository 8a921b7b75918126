package semaphore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// fakeSlot is a slot that is held. The holder of the other processes is [others].
type fakeSlot struct {
	holder, token int64
	expires       time.Time
}

const others = 999

// fakeSemaphore is a semaphore on the fake server.
type fakeSemaphore struct {
	id       int32
	gate     int64
	capacity int
	held     map[int32]fakeSlot
	place    atomic.Pointer[fakePlace] // of this process at the gate
	foreign  bool                      // another process stands at the gate
}

func (s *fakeSemaphore) free() int { return max(s.capacity-len(s.held), 0) }

// ours reports whether this process stands at the gate.
func (s *fakeSemaphore) ours() bool {
	p := s.place.Load()
	return p != nil && p.Held()
}

// occupy gives a free slot to a holder.
func (s *fakeSemaphore) occupy(holder, token int64, expires time.Time) int32 {
	for slot := int32(1); ; slot++ {
		if _, taken := s.held[slot]; !taken {
			s.held[slot] = fakeSlot{holder, token, expires}
			return slot
		}
	}
}

// fakeServer does what the functions of the schema do, one statement at a time. The driver of the test alone calls it.
type fakeServer struct {
	semaphores map[string]*fakeSemaphore
	token      int64
	violation  atomic.Pointer[string] // what was asked for that must never be asked for
}

func (f *fakeServer) complain(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	f.violation.CompareAndSwap(nil, &text)
}

func (f *fakeServer) byID(id int32) *fakeSemaphore {
	for _, s := range f.semaphores {
		if s.id == id {
			return s
		}
	}
	return nil
}

// run runs the statement of an operation and writes its answer.
func (f *fakeServer) run(op *sidecar.Op) {
	p := op.Params
	number := func(i int) int64 { n, _ := strconv.ParseInt(string(p[i]), 10, 64); return n }
	ints := func(i int) []int32 { list, _ := pgtext.ParseInts[int32](p[i]); return list }
	tokens := func(i int) []int64 { list, _ := pgtext.ParseInts[int64](p[i]); return list }
	switch op.Statement {
	case &stmtClaim:
		f.claim(op, f.byID(int32(number(0))), number(2), ints(3), time.Duration(number(4))*time.Millisecond, string(p[5]) == "true")
	case &stmtFree:
		f.free(op, number(0), ints(1), ints(2), tokens(3), tokens(4))
	case &stmtRenew:
		f.renew(op, number(0), ints(1), ints(2), tokens(3), time.Duration(number(4))*time.Millisecond, string(p[5]) == "true")
	case &stmtCapacity:
		s := f.semaphores[string(p[0])]
		op.Rows = [][][]byte{{pgtext.Int(int64(s.id)), pgtext.Int(int64(s.capacity))}}
	default:
		op.Rows = [][][]byte{{[]byte("0")}}
	}
}

func (f *fakeServer) claim(op *sidecar.Op, s *fakeSemaphore, holder int64, wants []int32, ttl time.Duration, standing bool) {
	if s == nil {
		op.Rows = [][][]byte{{nil, []byte("0"), nil, nil}}
		return
	}
	var slots []int32
	granted := 0
	if standing || (!s.ours() && !s.foreign) {
		f.token += tokensPerClaim
		for _, n := range wants {
			if int(n) > s.free() {
				break
			}
			granted++
			for range n {
				slots = append(slots, s.occupy(holder, f.token, time.Now().Add(ttl)))
			}
		}
	}
	op.Rows = [][][]byte{{
		pgtext.Int(int64(s.capacity)), pgtext.Int(int64(granted)), pgtext.Ints(slots), pgtext.Int(f.token),
	}}
}

func (f *fakeServer) free(op *sidecar.Op, holder int64, semaphores, slots []int32, tokens, gates []int64) {
	var freed []int32
	var awaited []int64
	for i, slot := range slots {
		s := f.byID(semaphores[i])
		if s == nil {
			continue
		}
		if h := s.held[slot]; h.holder == holder && h.token == tokens[i] && (holder > 0 || time.Now().Before(h.expires)) {
			delete(s.held, slot)
			freed = append(freed, int32(i+1))
		}
		if s.foreign || s.ours() {
			awaited = append(awaited, gates[i])
		}
	}
	op.Rows = [][][]byte{{pgtext.Ints(freed), pgtext.Ints(awaited)}}
}

func (f *fakeServer) renew(
	op *sidecar.Op, holder int64, semaphores, slots []int32, tokens []int64, ttl time.Duration, rest bool,
) {
	var renewed []int32
	named := map[string]bool{}
	for i, slot := range slots {
		named[fmt.Sprint(semaphores[i], slot, tokens[i])] = true
		s := f.byID(semaphores[i])
		if s == nil {
			continue
		}
		if h := s.held[slot]; h.holder == holder && h.token == tokens[i] && (holder > 0 || time.Now().Before(h.expires)) {
			s.held[slot] = fakeSlot{holder, h.token, time.Now().Add(ttl)}
			renewed = append(renewed, int32(i+1))
		}
	}
	for _, s := range f.semaphores {
		for slot, h := range s.held {
			if rest && h.holder == holder && !named[fmt.Sprint(s.id, slot, h.token)] {
				delete(s.held, slot)
			}
		}
	}
	op.Rows = [][][]byte{{pgtext.Ints(renewed)}}
}

// expire gives what has expired to others, and forgets what a holder without a session held.
func (f *fakeServer) expire(dead int64) {
	for _, s := range f.semaphores {
		for slot, h := range s.held {
			if h.holder != others && (h.holder == dead || !time.Now().Before(h.expires)) {
				delete(s.held, slot)
			}
		}
	}
}

// fakeConn is a connection whose statements wait for the driver of the test.
type fakeConn struct {
	id     int64
	server *fakeServer

	mu      sync.Mutex
	pending []*call // in the order in which they were sent
	dead    error
}

// call is a statement under way.
type call struct {
	op  *sidecar.Op
	ran bool // and waits for its answer to be read
}

func (c *fakeConn) Submit(ops ...*sidecar.Op) {
	c.mu.Lock()
	dead := c.dead
	for _, op := range ops {
		op.Sent = time.Now()
		if dead == nil {
			c.pending = append(c.pending, &call{op: op})
		}
	}
	c.check(ops)
	c.mu.Unlock()
	if dead != nil {
		answerLost(ops, dead)
	}
}

// check looks for statements that must not be under way together.
func (c *fakeConn) check(ops []*sidecar.Op) {
	claims, frees := map[string]int{}, 0
	for _, p := range c.pending {
		switch p.op.Statement {
		case &stmtClaim:
			claims[string(p.op.Params[1])]++
		case &stmtFree:
			frees++
		}
	}
	for gate, n := range claims {
		if n > 1 {
			c.server.complain("%d claims of the line of gate %s are under way", n, gate)
		}
	}
	if frees > 1 {
		c.server.complain("%d statements that free are under way", frees)
	}
	for _, op := range ops {
		if op.Statement == &stmtClaim && string(op.Params[5]) == "true" && !op.Alone {
			c.server.complain("a claim that stands at the gate does not come from the head")
		}
	}
}

func answerLost(ops []*sidecar.Op, cause error) {
	for _, op := range ops {
		op.Err = fmt.Errorf("%w: %w", lockerr.Lost, cause)
		op.Then(op)
	}
}

func (c *fakeConn) Help(context.Context, func() bool) {}
func (c *fakeConn) Attend()                           {}
func (c *fakeConn) CatchUp()                          {}
func (c *fakeConn) holder() int64                     { return c.id }

func (c *fakeConn) Alive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead == nil
}

// pick returns a statement under way: mostly the oldest.
func (c *fakeConn) pick(random *rand.Rand) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(c.pending) == 0:
		return nil
	case random.IntN(4) == 0:
		return c.pending[random.IntN(len(c.pending))]
	}
	return c.pending[0]
}

// answer reads the answer of a statement. An error of the server's means that it has done nothing.
func (c *fakeConn) answer(p *call, code string) {
	c.mu.Lock()
	for i := range c.pending {
		if c.pending[i] == p {
			c.pending = append(c.pending[:i:i], c.pending[i+1:]...)
			break
		}
	}
	c.mu.Unlock()
	if !p.ran {
		if code != "" {
			p.op.Err = &pgconn.PgError{Code: code, Message: "made up"}
		} else {
			c.server.run(p.op)
		}
	}
	p.op.Then(p.op)
}

var errCut = errors.New("cut")

// cut ends the connection, and returns what was under way.
func (c *fakeConn) cut() (pending []*call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = errCut
	pending, c.pending = c.pending, nil
	return pending
}

// fakeSidecar has no connection until the driver opens one.
type fakeSidecar struct {
	mu      sync.Mutex
	conn    *fakeConn
	wanted  bool
	changed chan struct{}
	news    []string // notifications that were sent
}

func (f *fakeSidecar) Holder(ctx context.Context) (int64, error) {
	for {
		f.mu.Lock()
		conn, changed := f.conn, f.changed
		f.wanted = f.wanted || conn == nil
		f.mu.Unlock()
		if conn != nil {
			return conn.id, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (f *fakeSidecar) Notify(payload string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.news = append(f.news, payload)
}

func (f *fakeSidecar) open() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = f.wanted || f.conn == nil
}

// set changes the connection. After one that was lost another is opened unasked, as the real sidecar does.
func (f *fakeSidecar) set(conn *fakeConn, wanted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn, f.wanted = conn, wanted
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeSidecar) take() (news []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	news, f.news = f.news, nil
	return news
}

// fakePlace is a place at a gate whose turns the driver gives.
type fakePlace struct {
	mu           sync.Mutex
	ready        chan struct{}
	held, parked bool
	left, placed bool
}

func (p *fakePlace) Ready() <-chan struct{} { return p.ready }
func (p *fakePlace) Err() error             { return nil }
func (p *fakePlace) Held() bool             { p.mu.Lock(); defer p.mu.Unlock(); return p.held }
func (p *fakePlace) Placed() bool           { p.mu.Lock(); defer p.mu.Unlock(); return p.placed }
func (p *fakePlace) Pass()                  { p.mu.Lock(); defer p.mu.Unlock(); p.held = false }
func (p *fakePlace) Park()                  { p.mu.Lock(); defer p.mu.Unlock(); p.held, p.parked = false, true }
func (p *fakePlace) Again()                 { p.mu.Lock(); defer p.mu.Unlock(); p.parked = false }
func (p *fakePlace) Leave()                 { p.mu.Lock(); defer p.mu.Unlock(); p.held, p.left = false, true }

// queues reports whether somebody stands there, or will.
func (p *fakePlace) queues() bool { p.mu.Lock(); defer p.mu.Unlock(); return !p.left }

// turn gives a turn, if the place waits for one.
func (p *fakePlace) turn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.held && !p.parked && !p.left {
		p.held, p.placed = true, true
		select {
		case p.ready <- struct{}{}:
		default:
		}
	}
}

// anError is the SQLSTATE of a statement that failed: mostly one that passes.
func anError(random *rand.Rand) string {
	if random.IntN(6) == 0 {
		return pgerr.InsufficientPrivilege
	}
	return []string{pgerr.LockNotAvailable, pgerr.QueryCanceled, pgerr.DeadlockDetected}[random.IntN(3)]
}
