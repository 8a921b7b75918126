package leaseengine

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/session"
)

// op is an operation of the pipeline: one of its fields is set.
type op struct {
	request *engine.Request
	renewal *renewal
	forfeit *advance // gives up a turn, see Unqueue
	leave   chan error
	strays  []advisory.Hold // are given back, see Repair
	tries   int             // that have failed
	alone   bool            // it goes in a round trip of its own: one that it was in failed, since somebody else has a row of it
}

// renewal renews all leases. With only, what else the client's holders have is given back.
type renewal struct{ only bool }

// link is a connection. Its holder is whom the rows belong to that are written by it.
type link struct {
	engine *Engine
	anchor *anchor // set before anything is sent
	holder int64
	pipe   *pipeline.Pipeline[op]
	joined atomic.Int64 // until when the server counts the link as a client, in nanoseconds after born; 0: it does not
	born   time.Time
	dead   bool // guarded by the engine's mutex
	utf8   bool // the database has every character

	listening atomic.Bool
}

var _ pipeline.Owner[op] = (*link)(nil)

func enlistment(holder int64, name string) [][]byte {
	return [][]byte{pgtext.Int(holder), []byte(name)}
}

// silence returns after how long without a statement a link shows a sign of life: later than from one renewal to the next, since a
// renewal is one, and twice in the span of trust, so that one may get lost.
func silence(ttl time.Duration) time.Duration { return ttl * 5 / 12 }

// start makes a pipeline of a session.
func (l *link) start(ctx context.Context, s *session.Session) (err error) {
	l.born = time.Now()
	l.utf8 = s.PgConn().ParameterStatus("server_encoding") == "UTF8"
	l.pipe, err = pipeline.New(ctx, s, pipeline.Owner[op](l), pipeline.Config{
		TTL: l.engine.cfg.TTL, Notified: l.engine.notified(l.holder), Workers: &l.engine.pipes,
		Silence: silence(l.engine.cfg.TTL),
	})
	return err
}

func (l *link) submit(ops ...op) { l.pipe.Submit(ops...) }

// leave gives back all that the client has, and waits for the answer until ctx ends.
func (l *link) leave(ctx context.Context) error {
	answer := make(chan error, 1)
	l.submit(op{leave: answer})
	l.pipe.Attend()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holders are all that the client was and may have something yet, the link's own last.
func (l *link) holders() []int64 {
	e, a := l.engine, l.anchor
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Concat(a.former, e.orphans, []int64{l.holder})
}

// maxBatch bounds one round trip, so that its request, some 50 bytes an operation, fits into the socket's buffer.
const maxBatch = 1024

// maxNames bounds the names in one round trip, in bytes, for the same reason.
const maxNames = 64 << 10

// Enqueue implements [pipeline.Owner]. A renewal goes before what waits.
func (l *link) Enqueue(waiting, ops []op) []op {
	if len(ops) == 1 && ops[0].renewal != nil {
		return append([]op{ops[0]}, waiting...)
	}
	return append(waiting, ops...)
}

// Fits implements [pipeline.Owner]. A renewal is a round trip of its own: whatever else waits for a row, or fails, leaves it alone.
func (l *link) Fits(waiting []op) int {
	if waiting[0].renewal != nil || waiting[0].alone {
		return 1
	}
	n, text := 0, 0
	for _, o := range waiting[:min(len(waiting), maxBatch)] {
		if o.request != nil {
			text += len(o.request.Name)
		}
		if n > 0 && (o.alone || text > maxNames) {
			break
		}
		n++
	}
	return n
}

// tellable returns a name if every database can store it: most encodings lack characters, and what they lack is an error.
func (l *link) tellable(name string) string {
	if l.utf8 || strings.IndexFunc(name, func(c rune) bool { return c > unicode.MaxASCII }) < 0 {
		return name
	}
	return ""
}

// NewRound implements [pipeline.Owner].
func (l *link) NewRound() pipeline.Round[op] { return &round{link: l} }

// Lost implements [pipeline.Owner].
func (l *link) Lost(unanswered []op, cause error) {
	e := l.engine
	for _, o := range unanswered {
		if o.leave != nil {
			o.leave <- cause
		}
	}
	e.mu.Lock()
	a := l.anchor
	first := !l.dead
	l.dead = true
	e.mu.Unlock()
	switch {
	case a == nil: // it was never attached
		return
	case !e.cfg.Pooled:
		if first {
			a.lose(cause)
		} else {
			e.manager.Lost(a, cause)
		}
		return
	}
	var requests []*engine.Request
	e.mu.Lock()
	for _, o := range unanswered {
		if o.request == nil {
			continue
		}
		requests = append(requests, o.request)
		if held := a.leases[o.request.Key]; held != nil && o.request.Verb == engine.Release {
			held.doubted = true
		}
	}
	if a.link == l {
		a.link = nil
		a.former = append(a.former, l.holder)
	}
	report := first && a.cause == nil && !e.closed
	e.mu.Unlock()
	if report {
		e.cfg.Report("a connection for locks was lost; another one takes the leases over", cause)
	}
	chans.Signal(e.want)
	if len(requests) > 0 {
		a.Submit(requests...)
		a.Attend()
	}
}

// Closed implements [pipeline.Owner].
func (l *link) Closed() {
	l.engine.cfg.Budget.Give(session.Holding)
	chans.Signal(l.engine.want)
}

// refuse is told that the transaction was undone, by the statement of a sink. A release, and what failed for a reason that passes, is
// sent again. If somebody else has the row of a key, this holds up what is asked of that key alone: it is not granted.
func (r *round) refuse(ops []op, sink pipeline.Sink, err error) {
	l := r.link
	e := l.engine
	passes := transient(err)
	if _, joins := sink.(joinSink); pgerr.Code(err) == pgerr.LockNotAvailable && !joins {
		if len(ops) > 1 {
			for i := range ops {
				ops[i].alone = true
			}
			l.submit(ops...)
			l.pipe.Attend()
			return
		}
		if o := ops[0]; o.request != nil && o.request.Verb == engine.Acquire {
			e.manager.Answer([]*engine.Request{o.request})
			return
		}
	}
	var answered []*engine.Request
	var again []op
	most := 0
	for _, o := range ops {
		o.tries++
		switch {
		case o.request != nil && o.request.Verb == engine.Release, o.renewal != nil, o.forfeit != nil && o.tries < maxTries:
			again = append(again, o)
		case o.leave != nil && passes && o.tries < maxTries, o.request != nil && passes && o.tries < maxTries:
			again = append(again, o)
		case o.leave != nil:
			o.leave <- err
		case o.request != nil:
			o.request.Err, o.request.Retry = err, passes
			answered = append(answered, o.request)
		}
		most = max(most, o.tries)
	}
	if len(again) > 0 {
		resend := func() {
			l.submit(again...)
			l.pipe.Attend()
		}
		if !e.later(rand.N(backoff.Bound(most)), resend) { //nolint:gosec // jitter, not a secret
			// Close waits for the others, and gives back what would be renewed.
			again = slices.DeleteFunc(again, func(o op) bool { return o.renewal != nil })
			resend()
		}
	}
	if len(answered) > 0 {
		e.manager.Answer(answered)
	}
}

// maxTries is how often a statement is sent that fails for reasons that pass, such as a serialization failure, which an engine
// may answer to every third.
const maxTries = 25

// transient reports whether an error is one of the moment, after which nothing is done.
func transient(err error) bool {
	switch pgerr.Code(err) {
	case pgerr.SerializationFailure, pgerr.DeadlockDetected, pgerr.LockNotAvailable, pgerr.QueryCanceled, pgerr.UnknownStatement:
		return true
	}
	return false
}

// later runs f after a pause, unless the engine is closed before. It returns false if the engine is closed already.
func (e *Engine) later(pause time.Duration, f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.soon(pause, f)
}

// soon is later for a caller that holds the mutex.
func (e *Engine) soon(pause time.Duration, f func()) bool {
	if e.closed { // Close ends what it is about
		return false
	}
	e.workers.Go(func() {
		select {
		case <-time.After(pause):
			f()
		case <-e.ctx.Done():
		}
	})
	return true
}

// join notes that the server counts the link as a client, by a message that was sent at a moment. A session is one as long as it
// lives.
func (l *link) join(sent time.Time) {
	until := int64(math.MaxInt64)
	if l.engine.cfg.Pooled {
		until = int64(sent.Sub(l.born) + span(l.engine.cfg.TTL))
	}
	l.joined.Store(until)
}

// counts reports whether the server counts the link as a client.
func (l *link) counts() bool { return int64(time.Since(l.born)) < l.joined.Load() }

// notified returns what hears notifications: its turn is the holder's that they name first.
func (e *Engine) notified(holder int64) func(payload string) {
	return func(payload string) {
		var next int64
		var key, pair int64
		if n, err := fmt.Sscanf(payload, "%d/%d/%d", &next, &key, &pair); err == nil && n == 3 && next == holder {
			e.call(advisoryKey(key, pair != 0))
		} else if err != nil && e.cfg.Notified != nil {
			e.cfg.Notified(payload)
		}
	}
}

var errExpired = &lockerr.LossError{Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("the row of the lease is no longer the client's")}
