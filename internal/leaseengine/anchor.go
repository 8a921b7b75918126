package leaseengine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/trust"
)

// anchor is what all leases of the client hang on. Where the client has a session they end with it, and so does the anchor; behind
// a pooler the anchor goes on with the next link, as long as it is trusted. Its fields are guarded by the engine's mutex.
type anchor struct {
	engine *Engine
	tied   atomic.Pointer[link] // the session that the leases end with; nil behind a pooler

	link    *link // nil while there is none
	former  []int64
	leases  map[advisory.Key]*lease
	pending []*engine.Request // about keys that are held, for the next link
	cause   error             // why the anchor was lost

	born   time.Time
	trusts atomic.Int64 // when the trust in the leases ends, in nanoseconds after born
}

// lease is a row that is ours.
type lease struct {
	token     int64
	mode      advisory.Mode
	releasing bool
	doubted   bool // a release was sent whose answer was lost
	missed    bool // the last renewal left it out
}

var (
	_ engine.Anchor     = (*anchor)(nil)
	_ engine.Identified = (*anchor)(nil)
	_ engine.Recorded   = (*anchor)(nil)
)

func newAnchor(e *Engine) *anchor {
	a := &anchor{engine: e, leases: map[advisory.Key]*lease{}, born: time.Now()}
	a.trusts.Store(math.MaxInt64)
	return a
}

// span is for how long leases are trusted that were granted or renewed by a message sent at a moment.
func span(ttl time.Duration) time.Duration { return trust.Span(ttl) }

// confirm notes that all leases are held at a moment. The caller holds the engine's mutex.
func (a *anchor) confirm(sent time.Time) {
	if len(a.leases) == 0 {
		a.trusts.Store(math.MaxInt64)
		return
	}
	a.trusts.Store(int64(sent.Sub(a.born) + span(a.engine.cfg.TTL)))
}

// add notes a lease that was granted by a message sent at a moment. The trust in older ones stays as it is. The caller holds the mutex.
func (a *anchor) add(key advisory.Key, l *lease, sent time.Time) {
	a.leases[key] = l
	if len(a.leases) == 1 {
		a.confirm(sent)
	}
}

// remove forgets a lease. The caller holds the mutex.
func (a *anchor) remove(key advisory.Key) {
	delete(a.leases, key)
	if len(a.leases) == 0 {
		a.trusts.Store(math.MaxInt64)
	}
}

// Trusted implements [engine.Anchor].
func (a *anchor) Trusted(now time.Time) bool {
	if l := a.tied.Load(); l != nil && !l.pipe.Trusted(now) {
		return false
	}
	return int64(now.Sub(a.born)) < a.trusts.Load()
}

// Client implements [engine.Identified].
func (a *anchor) Client() int64 {
	if l := a.current(); l != nil {
		return l.holder
	}
	return 0
}

// Recorded implements [engine.Recorded].
func (a *anchor) Recorded(key advisory.Key) int64 {
	a.engine.mu.Lock()
	defer a.engine.mu.Unlock()
	if l := a.leases[key]; l != nil {
		return l.token
	}
	return 0
}

// trustLeft returns for how long the trust in the leases lasts.
func (a *anchor) trustLeft(now time.Time) time.Duration {
	return time.Duration(a.trusts.Load()) - now.Sub(a.born)
}

// Submit implements [engine.Anchor].
func (a *anchor) Submit(requests ...*engine.Request) {
	e := a.engine
	e.mu.Lock()
	cause, l := a.cause, a.link
	var ops []op
	var again []*engine.Request
	for _, r := range requests {
		switch {
		case cause != nil:
		case l != nil:
			ops = append(ops, op{request: r})
		case r.Verb == engine.Acquire:
			again = append(again, r)
		default:
			a.pending = append(a.pending, r) // about a key that is held
		}
	}
	e.mu.Unlock()
	switch {
	case cause != nil:
		e.manager.Lost(a, cause)
	case l != nil:
		l.submit(ops...)
	}
	e.again(again)
}

// again answers requests that there is no link for: the lock manager asks again when there is one.
func (e *Engine) again(requests []*engine.Request) {
	if len(requests) == 0 {
		return
	}
	for _, r := range requests {
		r.Err, r.Retry = errNoLink, true
	}
	e.manager.Answer(requests)
}

var errNoLink = fmt.Errorf("%w: the connection for locks was lost", lockerr.NotAcquired)

var errNoConnection = errors.New("there is no connection")

// Help implements [engine.Anchor].
func (a *anchor) Help(ctx context.Context, done func() bool) {
	if l := a.current(); l != nil {
		l.pipe.Help(ctx, done)
	}
}

// Attend implements [engine.Anchor].
func (a *anchor) Attend() {
	if l := a.current(); l != nil {
		l.pipe.Attend()
	}
}

// CatchUp implements [engine.Anchor].
func (a *anchor) CatchUp(ctx context.Context) {
	if l := a.tied.Load(); l != nil {
		l.pipe.CatchUp(ctx)
	}
}

func (a *anchor) current() *link {
	a.engine.mu.Lock()
	defer a.engine.mu.Unlock()
	return a.link
}

// Expire implements [engine.Anchor].
func (a *anchor) Expire() error {
	cause := a.engine.expired()
	if l := a.tied.Load(); l != nil && !l.pipe.Trusted(time.Now()) {
		cause = l.pipe.Expired()
	}
	a.Fail(cause)
	return cause
}

// Fail implements [engine.Anchor]. A session is ended, by its pipeline, when its holders were told.
func (a *anchor) Fail(cause error) {
	if l := a.tied.Load(); l != nil {
		l.pipe.Fail(cause)
		return
	}
	l := a.lose(cause)
	if l != nil {
		l.pipe.Fail(cause)
	}
}

// lose ends the anchor, once, and tells its holders. It returns the link that the anchor had.
func (a *anchor) lose(cause error) *link {
	e := a.engine
	e.mu.Lock()
	if a.cause != nil {
		e.mu.Unlock()
		return nil
	}
	a.cause = cause
	l := a.link
	if e.cfg.Pooled {
		e.orphans = append(e.orphans, a.former...)
		if l != nil {
			e.orphans = append(e.orphans, l.holder)
		}
	}
	held := len(a.leases)
	a.link, a.former, a.pending = nil, nil, nil
	a.leases = map[advisory.Key]*lease{}
	if e.anchor == a {
		e.anchor = nil
	}
	report := !e.closed
	e.mu.Unlock()
	e.manager.Lost(a, cause)
	if report {
		e.cfg.Report(fmt.Sprintf("leases were lost: %d", held), cause)
	}
	chans.Signal(e.want)
	return l
}

// Drop implements [engine.Anchor].
func (a *anchor) Drop() {}

// close gives back all that the anchor holds and ends it.
func (a *anchor) close(ctx context.Context) error {
	l := a.current()
	err := errNoConnection
	if l != nil {
		err = l.leave(ctx)
		if a.engine.cfg.Pooled {
			a.lose(lockerr.ClosedLoss)
			_ = l.pipe.Close(ctx, nil) // all that was held was given back, or err says why not
		} else if last := l.pipe.Close(ctx, &stmtUnlockAll); err == nil {
			err = last
		}
	} else {
		a.lose(lockerr.ClosedLoss)
	}
	if err != nil {
		return fmt.Errorf("close: the server did not confirm that the locks are free: %w", err)
	}
	return nil
}
