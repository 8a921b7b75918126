package semaphore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
	"github.com/pgbaton/pgbaton/internal/waitline"
)

// Line is a semaphore as this process uses it. All but manager, name, gate and the channel is guarded by the manager's
// mutex.
type Line struct {
	manager *Manager
	id      int32 // on the server of the present session; see lookedUp
	name    string
	gate    advisory.Key

	state    state
	lookup   lookup
	missing  error // what the claim said that did not find the semaphore; for ofExistence
	capacity int
	waiters  waitline.Line[wish]
	waits    int                // waiters that do not only try
	served   time.Time          // when the head last got something
	callOff  context.CancelFunc // ends the head's wait, while it is away

	poke chan struct{} // slots may be free
}

// wish is what a waiter wants, and its permit when it was granted.
type wish struct {
	n      int
	try    bool // it does not wait for other holders
	permit *Permit
}

type waiter = waitline.Waiter[wish]

func tries(w *waiter) bool { return w.Value.try }

func everybody(*waiter) bool { return true }

// Acquire waits for a permit of n slots until ctx ends; with try, only for the server's answer. On failure nothing
// is held, and nothing will be.
func (l *Line) Acquire(ctx context.Context, n int, try bool) (*Permit, error) {
	m := l.manager
	if ctx.Err() != nil {
		return nil, l.ended(ctx)
	}
	w := &waiter{Value: wish{n: n, try: try}}
	w.Init(nil)
	a := actions{now: time.Now()}
	m.mu.Lock()
	err := l.enter(w, &a)
	s := m.session
	m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	m.run(&a, s, true)
	if len(a.ops) > 0 {
		s.Help(ctx, w.Woken)
	}
	err = w.Wait(ctx, l.abandon, func(w *waiter) { w.Value.permit.GiveBack() })
	switch {
	case errors.Is(err, waitline.ErrEnded):
		return nil, l.ended(ctx)
	case err != nil:
		return nil, err
	}
	return w.Value.permit, nil
}

func (l *Line) enter(w *waiter, a *actions) error {
	switch {
	case l.manager.life != open:
		return lockerr.Closed
	case w.Value.try && l.waits > 0:
		return fmt.Errorf("%w: others wait", lockerr.NotAcquired)
	}
	l.waiters.Push(w)
	if !w.Value.try {
		l.waits++
	}
	l.advance(a)
	if w.Value.n > l.capacity && (l.state.hasHead() || l.waiters.First() != w) {
		l.lookUp(ofCapacity, a) // else it would hear of it when it is its turn
	}
	return nil
}

// abandon takes a waiter out of the line, unless it was answered.
func (l *Line) abandon(w *waiter) (abandoned bool) {
	l.manager.step(func(*actions) {
		first := l.waiters.First() == w
		if abandoned = l.waiters.Abandon(w); !abandoned {
			return
		}
		l.left(w)
		if first {
			chans.Signal(l.poke) // the next may want less
		}
	})
	return abandoned
}

// respond answers a waiter, with a permit if err is nil.
func (l *Line) respond(w *waiter, p *Permit, err error, a *actions) {
	if !l.waiters.Answer(w, err) {
		return
	}
	w.Value.permit = p
	l.left(w)
	a.wake = append(a.wake, w)
}

// left notes that a waiter has left the line. With the last that does not only try the head is called off.
func (l *Line) left(w *waiter) {
	if !w.Value.try {
		l.waits--
	}
	if l.waits == 0 && l.state.hasHead() {
		l.callOff()
	}
}

// refuse answers the waiters of which something is true with an error.
func (l *Line) refuse(err error, which func(*waiter) bool, a *actions) {
	for w := range l.waiters.All() {
		if which(w) {
			l.respond(w, nil, err, a)
		}
	}
}

// distrust ends the permits of a line that has met an event that cannot come; see the package's table.
func (l *Line) distrust(defect error, a *actions) {
	a.defects = append(a.defects, defect)
	reason := fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{Reason: lockerr.Defect, Cause: defect})
	for c := range l.manager.claims {
		if c.line == l {
			l.manager.revoke(c, reason, a)
		}
	}
}

// ended is the error of a wait that the context ended.
func (l *Line) ended(ctx context.Context) error {
	l.manager.mu.Lock()
	failure := l.manager.failure
	l.manager.mu.Unlock()
	return fmt.Errorf("%w: %w", lockerr.NotAcquired, lockerr.Ended(ctx, lockerr.NoConnection(failure)))
}

// advance asks for slots for the waiters, unless that is under way or the head's to do. The caller holds the mutex, as
// of all that take actions.
func (l *Line) advance(a *actions) {
	if l.mayAsk() {
		l.happens(wanted, a, nil)
	}
}

// mayAsk reports whether the line has somebody to ask for and a session to ask with. Without a session it asks for one.
func (l *Line) mayAsk() bool {
	if l.waiters.Len() == 0 || l.lookup == ofExistence {
		return false
	}
	if l.manager.session == nil {
		l.manager.sidecar.open()
		return false
	}
	return true
}

// Resized takes note of a new capacity.
func (l *Line) Resized(capacity int) {
	l.manager.step(func(a *actions) {
		l.resized(capacity, a)
		chans.Signal(l.poke)
	})
	l.manager.sidecar.Notify(resizedPrefix + strconv.FormatInt(l.gate.ID, 10))
}

// resized answers the waiters that want more than there is.
func (l *Line) resized(capacity int, a *actions) {
	l.capacity = capacity
	for w := range l.waiters.All() {
		if w.Value.n > capacity {
			l.respond(w, nil, l.tooMany(w.Value.n), a)
		}
	}
}

func (l *Line) tooMany(n int) error {
	return fmt.Errorf("%w: %d wanted, the capacity is %d", lockerr.OverCapacity, n, l.capacity)
}

var stmtCapacity = pipeline.Statement{
	Name: "pgbaton_capacity", SQL: "SELECT id, capacity FROM pgbaton.open_semaphore($1, NULL)",
}

// lookUp asks the server about the semaphore, unless it is being asked: then its answer will do.
func (l *Line) lookUp(what lookup, a *actions) {
	asked := l.lookup != noLookup
	if l.manager.session == nil {
		return
	}
	l.lookup = max(l.lookup, what)
	if !asked {
		a.ops = append(a.ops, &sidecar.Op{
			Statement: &stmtCapacity, Params: [][]byte{[]byte(l.name)}, Then: l.lookedUp,
		})
	}
}

// lookedUp takes the answer. A failure is left to the next claim, which will see it too. The semaphore may have another
// id: the client has moved to another server, or somebody has removed it and made it anew.
func (l *Line) lookedUp(op *sidecar.Op) {
	l.manager.step(func(a *actions) {
		doubted, missing := l.lookup == ofExistence, l.missing
		l.lookup, l.missing = noLookup, nil
		defer l.advance(a)
		if op.Err == nil && len(op.Rows) == 1 {
			id, err1 := strconv.ParseInt(string(op.Rows[0][0]), 10, 32)
			capacity, err2 := strconv.Atoi(string(op.Rows[0][1]))
			if err1 == nil && err2 == nil && (!doubted || int32(id) != l.id) {
				l.id = int32(id)
				l.resized(capacity, a)
				return
			}
		}
		if doubted && (op.Err == nil || !errors.Is(op.Err, lockerr.Lost) && !sidecar.Passes(op.Err)) {
			l.refuse(missing, everybody, a)
		}
	})
}
