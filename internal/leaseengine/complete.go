package leaseengine

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Complete implements [pipeline.Round]. What the answers mean for the leases is noted before the lock manager hears of it.
func (r *round) Complete(ops []op, sent time.Time) {
	l := r.link
	e, a := l.engine, l.anchor
	if r.joins || r.renewed != nil {
		l.join(sent)
	}
	e.mu.Lock()
	lost := r.noteRenewal(a, sent)
	r.noteReleases(a)
	r.noteAcquires(a, sent)
	e.mu.Unlock()
	if len(lost) > 0 {
		if e.cfg.Both { // the session may have the advisory locks still
			a.Fail(errExpired)
		} else {
			e.manager.Lost(a, errExpired, lost...)
		}
	}
	answered := make([]*engine.Request, 0, len(r.acquires)+len(r.releases))
	answered = append(answered, r.releases...)
	for i, request := range r.acquires {
		if request != nil {
			request.OK, request.Tokens = r.ok[i], r.granted[i]
			answered = append(answered, request)
		}
	}
	for i, request := range r.releases {
		request.OK = r.freed[i]
	}
	for _, o := range ops {
		if o.leave != nil {
			o.leave <- nil
		}
	}
	if len(answered) > 0 {
		e.manager.Answer(answered)
	}
}

// noteRenewal returns which leases are lost. A lease that could not be renewed once keeps all of them as long as they were trusted
// before, which is beyond the next renewal; one that cannot be renewed then either is given up. The caller holds the mutex.
func (r *round) noteRenewal(a *anchor, sent time.Time) (lost []advisory.Key) {
	if r.renewed == nil || a.cause != nil {
		return nil
	}
	all := true
	for i, key := range r.renews {
		l := r.leases[i]
		if a.leases[key] != l || l.releasing {
			continue
		}
		missed := l.missed
		l.missed = r.missed[i]
		switch {
		case r.renewed[i]:
		case l.missed && !missed:
			all = false
		default:
			delete(a.leases, key)
			lost = append(lost, key)
		}
	}
	if all {
		a.confirm(sent)
	} else {
		a.engine.soon(a.engine.cfg.TTL/12, a.engine.renew)
	}
	if r.only {
		done := func(holder int64) bool { return slices.Contains(r.former, holder) }
		a.former = slices.DeleteFunc(a.former, done)
		a.engine.orphans = slices.DeleteFunc(a.engine.orphans, done)
	}
	return lost
}

// noteReleases forgets leases that were given back. The caller holds the mutex.
func (r *round) noteReleases(a *anchor) {
	for i, request := range r.releases {
		// A lease that is trusted and gone was given back by the release whose answer was lost.
		if held := a.leases[request.Key]; held != nil && held.doubted && a.Trusted(time.Now()) {
			r.freed[i] = true
		}
		a.remove(request.Key)
	}
}

// noteAcquires notes what was granted. The caller holds the mutex.
func (r *round) noteAcquires(a *anchor, sent time.Time) {
	for i, request := range r.acquires {
		if request == nil || request.Verb != engine.Acquire || !r.ok[i] {
			continue
		}
		if p := a.engine.queued[request.Key]; p != nil {
			p.marked = false // the grant has used the turn
		}
		if a.cause == nil {
			tokens := r.granted[i]
			token, _ := tokens.Next()
			a.add(request.Key, &lease{token: token, mode: request.Mode}, sent)
		}
	}
}

// refusal translates the server's error for the operations that it ended.
func refusal(err *pgconn.PgError) error { return pipeline.Refusal(err) }
