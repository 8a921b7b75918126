package election

import (
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
)

// tryOn tries for the contests that are due, until there are no candidates.
func (m *Manager) tryOn() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		m.mu.Lock()
		if len(m.contests) == 0 || m.ctx.Err() != nil {
			m.trying = false
			m.mu.Unlock()
			return
		}
		now := time.Now()
		contests, next := m.due(now)
		m.mu.Unlock()
		if len(contests) > 0 {
			m.try(contests)
			continue
		}
		var later <-chan time.Time
		if !next.IsZero() {
			timer.Reset(next.Sub(now))
			later = timer.C
		}
		select {
		case <-later:
		case <-m.tries:
		case <-m.stopped:
		}
	}
}

// holdOff has the client hold back from a name that it has resigned from, whether its candidate goes on or another comes
// at once: else a process whose func fails all the time would lead again before others have heard of it. The caller
// holds the mutex.
func (m *Manager) holdOff(name string) {
	now := time.Now()
	maps.DeleteFunc(m.heldOff, func(_ string, until time.Time) bool { return !now.Before(until) })
	m.heldOff[name] = now.Add(holdBack)
}

// due lists the contests to be tried now, and says when there will be others; zero if somebody has to say so first.
// The caller holds the mutex.
func (m *Manager) due(now time.Time) (contests []*contest, next time.Time) {
	all := !now.Before(m.round)
	if all {
		m.round = now.Add(every - every/10 + rand.N(every/5)) //nolint:gosec // jitter, not a secret
	}
	for _, p := range m.contests {
		if p.waiters.Len() == 0 || p.term != nil {
			continue
		}
		if next.IsZero() {
			next = m.round
		}
		switch {
		case now.Before(m.heldOff[p.name]):
			p.soon = time.Time{} // others heard it too; a round will come
		case all || (!p.soon.IsZero() && !now.Before(p.soon)):
			p.soon = time.Time{}
			contests = append(contests, p)
		case !p.soon.IsZero() && p.soon.Before(next):
			next = p.soon
		}
	}
	return contests, next
}

// try tries for contests in one round trip, and gives the terms to the waiters.
func (m *Manager) try(contests []*contest) {
	keys := make([]advisory.Named, len(contests))
	for i, p := range contests {
		keys[i] = p.key
	}
	holds, errs := m.cfg.Locks.TryMany(m.ctx, keys, advisory.Exclusive)
	var terms []*Term
	var answered []*waiter
	var unwanted []*lockmgr.Hold
	m.mu.Lock()
	for i, p := range contests {
		p.lastError = errs[i]
		switch {
		case errors.Is(errs[i], lockerr.Engine): // no round brings the client's engine back
			answered = append(answered, p.refuse(errs[i])...)
		case holds[i] == nil:
		case p.waiters.Len() == 0: // they ended meanwhile
			unwanted = append(unwanted, holds[i])
		default:
			t := &Term{Hold: holds[i], manager: m, contest: p, over: make(chan struct{})}
			terms = append(terms, t)
			p.term = t
			w := p.waiters.First()
			w.Value = t
			p.waiters.Answer(w, nil)
			answered = append(answered, w)
		}
	}
	m.mu.Unlock()
	for _, w := range answered {
		w.Wake()
	}
	for _, hold := range unwanted {
		hold.GiveBack()
	}
	for _, t := range terms {
		t.Hold.OnEnd(t.finished)
	}
	if len(terms) > 0 {
		chans.Signal(m.rows)
	}
}

const (
	freePrefix   = "leader/free/"   // and the name: its leader has resigned
	resignPrefix = "leader/resign/" // and term/name: it is asked to
)

// heardFree is told that a leader has resigned. It tries soon, but not at the very moment at which all others do.
func (m *Manager) heardFree(payload string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.contests[strings.TrimPrefix(payload, freePrefix)]
	if p != nil && p.waiters.Len() > 0 && p.term == nil {
		p.soon = time.Now().Add(rand.N(spread)) //nolint:gosec // jitter, not a secret
		chans.Signal(m.tries)
	}
}
