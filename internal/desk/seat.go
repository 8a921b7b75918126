package desk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Link is what the desk needs of a link; see package link.
type Link interface {
	Submit(ops ...*link.Op)
	Help(ctx context.Context, done func() bool)
	Attend()
	CatchUp(ctx context.Context)
	Trusted(now time.Time) bool
	Jeopardy() <-chan struct{}
	Fail(cause error)
	Expired() error
	Close(ctx context.Context) error
}

// seat is a link with what the desk keeps of it. All but link is guarded by the desk's mutex; cause
// is set once, before any of its holders is told.
type seat struct {
	desk  *Desk
	link  Link
	held  int // entries that are not idle
	deal  deal
	cause error // why it was lost

	scratch actions // of Complete: a link has one reader at a time
}

var _ link.Handler = (*seat)(nil)

// deal gives out the tokens of the newest round trip. They serve the grants of that round trip and, after
// them, hand-overs and joins of keys held since before the draw; never a later grant by the server,
// since its own round trip brings newer ones.
type deal struct {
	draws []int64
	used  int64
}

func (t *deal) next() (int64, bool) {
	i := t.used / link.TokensPerDraw
	if i >= int64(len(t.draws)) {
		return 0, false
	}
	token := t.draws[i] + t.used%link.TokensPerDraw
	t.used++
	return token, true
}

// Complete implements [link.Handler].
func (s *seat) Complete(ops []*link.Op, draws []int64) {
	d := s.desk
	a := &s.scratch
	a.now = time.Now()
	d.mu.Lock()
	if len(draws) > 0 {
		s.deal = deal{draws: draws}
	}
	for _, op := range ops {
		if e, ok := op.Owner.(*entry); ok {
			if e.op == op { // else the answer comes after the loss of the link
				d.complete(e, op, a)
			}
		} else if op.Kind == link.Look {
			d.sawTable(op)
		}
	}
	d.mu.Unlock()
	d.run(a, nil)
	a.reset()
}

// complete takes the answer to an entry's operation.
func (d *Desk) complete(e *entry, op *link.Op, a *actions) {
	switch op.Kind {
	case link.Try, link.TryPolite, link.TryAtGate:
		d.tried(e, op, a)
		return
	case link.Unlock:
		if h := e.leaving; h != nil {
			e.leaving = nil
			if !op.OK {
				h.result = lost(errNotThere)
			}
			a.freed = append(a.freed, h)
		}
		d.vacate(e)
	case link.Gate:
		e.phase = held
		if op.Err == nil && op.OK {
			e.since, e.passes = a.now, 0
		} else {
			d.refuse(e, lockerr.NotAcquired, true, a)
			if e.first != nil {
				d.queue(e)
			}
		}
	case link.Draw:
		e.phase = held
		if op.Err == nil {
			e.retries = 0
		} else if !e.again(op.Err) {
			d.refuse(e, op.Err, false, a)
		}
	case link.Downgrade:
		d.downgraded(e, op, a)
	case link.Ping, link.Look:
	}
	d.advance(e, a)
}

var errNotThere = &lockerr.LossError{
	Reason: lockerr.NotThere, Cause: errors.New("the server says that its session did not hold the lock"),
}

// again says whether to submit an operation that was cut off from outside once more.
func (e *entry) again(err error) bool {
	const maxRetries = 3
	e.retries++
	return errors.Is(err, link.ErrRetry) && e.retries <= maxRetries
}

// tried takes the answer to a try.
func (d *Desk) tried(e *entry, op *link.Op, a *actions) {
	switch {
	case op.OK:
		e.phase = held
		d.held++
		e.since, e.passes, e.retries = a.now, -1, 0 // the first grant is no hand-over
		if d.held > d.most() {                      // many were asked for at once
			d.refuse(e, lockerr.Limit(d.most()), false, a)
		}
		d.leave(e)
		d.settleTurn(e, true)
	case op.Err != nil:
		d.vacate(e)
		if !e.again(op.Err) {
			e.retries = 0
			d.refuse(e, op.Err, false, a)
		}
	default:
		d.vacate(e)
		d.refuse(e, lockerr.NotAcquired, true, a)
		if e.first != nil {
			d.queue(e)
		}
		d.settleTurn(e, false)
	}
	d.advance(e, a)
}

// Lost implements [link.Handler].
func (s *seat) Lost(ops []*link.Op, cause error) {
	d := s.desk
	a := actions{now: time.Now()}
	d.mu.Lock()
	tell := false
	if s.cause == nil {
		s.cause = cause
		tell = d.unseat(s)
	}
	for _, e := range d.entries {
		if e.seat == s {
			d.lose(e, &a)
		}
	}
	d.mu.Unlock()
	d.run(&a, nil)
	if tell {
		d.cfg.Report("a connection was lost, with the locks on it", cause)
	}
	_ = ops // each belongs to an entry of this seat, and was dealt with above
}

// Closed implements [link.Handler].
func (s *seat) Closed() {
	s.desk.cfg.Hung()
	chans.Signal(s.desk.want) // there is room for another
}

// lose takes an entry off its lost seat; those who wait ask again elsewhere.
func (d *Desk) lose(e *entry, a *actions) {
	for e.owners != nil {
		h := e.owners
		e.disown(h)
		a.lost = append(a.lost, h)
	}
	e.endShift(lost(e.seat.cause), a)
	if h := e.leaving; h != nil {
		e.leaving = nil
		h.result = lost(h.seat.cause)
		a.freed = append(a.freed, h)
	}
	d.vacate(e)
	e.op = new(link.Op) // the lost link may still be busy with the old one
	d.advance(e, a)
}

// unseat removes a seat from those that can be picked, asks for another, and says whether to report it.
func (d *Desk) unseat(s *seat) bool {
	for i, other := range d.seats {
		if other == s {
			d.seats = append(d.seats[:i:i], d.seats[i+1:]...)
			d.gone = append(d.gone, s.link)
			return !d.closed
		}
	}
	return false
}

// pick returns the link with the fewest locks, nil if there is none. When all are well filled it asks
// for another: a session's every statement slows down with the locks it holds.
func (d *Desk) pick() *seat {
	var best *seat
	for _, s := range d.seats {
		if best == nil || s.held < best.held {
			best = s
		}
	}
	if best == nil || (best.held >= d.cfg.PerLink && len(d.seats) < d.cfg.MaxLinks) {
		chans.Signal(d.want)
	}
	return best
}

// open dials a link and seats it.
func (d *Desk) open(ctx context.Context) error {
	s := &seat{desk: d}
	l, table, err := d.cfg.Dial(ctx, s)
	if err != nil {
		return err
	}
	a := actions{now: time.Now()}
	d.mu.Lock()
	s.link = l
	d.lockTable = table
	if s.cause == nil { // it may have died already
		d.seats = append(d.seats, s)
		d.lastError = nil
		for _, e := range d.entries {
			if e.phase == idle {
				d.advance(e, &a)
			}
		}
	} else {
		d.gone = append(d.gone, l)
	}
	d.mu.Unlock()
	d.run(&a, nil)
	return nil
}

// short says whether another link is wanted.
func (d *Desk) short() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.seats {
		if s.held < d.cfg.PerLink {
			return false
		}
	}
	return len(d.seats) < d.cfg.MaxLinks
}

// maintain opens links when they are wanted, with jittered pauses between failures.
func (d *Desk) maintain(ctx context.Context) {
	defer d.workers.Done()
	const firstPause, longestPause = 20 * time.Millisecond, 2 * time.Second
	pause := firstPause
	for {
		var retry <-chan time.Time
		d.bury(ctx)
		if d.short() {
			switch err := d.open(ctx); {
			case err == nil:
				pause = firstPause
				d.cfg.Report("a connection for locks was opened", nil)
				continue
			case ctx.Err() != nil:
				return
			default:
				d.failed(err)
				retry = time.After(rand.N(pause) + pause/2) //nolint:gosec // jitter, not a secret
				pause = min(2*pause, longestPause)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-retry:
		case <-d.wanted(retry):
		}
	}
}

// wanted is the channel to wait on for a wish; during a pause wishes wait.
func (d *Desk) wanted(pause <-chan time.Time) <-chan struct{} {
	if pause != nil {
		return nil
	}
	return d.want
}

// failed tells the tries that wait for a link that there is none.
func (d *Desk) failed(err error) {
	d.cfg.Report("no connection for locks can be opened; it is tried again", err)
	a := actions{now: time.Now()}
	d.mu.Lock()
	if len(d.seats) == 0 {
		d.lastError = err
		for _, e := range d.entries {
			if e.phase == idle {
				d.refuse(e, fmt.Errorf("%w: there is no connection: %w", lockerr.NotAcquired, err), true, &a)
				d.forget(e)
			}
		}
	}
	d.mu.Unlock()
	d.run(&a, nil)
}
