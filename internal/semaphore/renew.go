package semaphore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
	"github.com/pgbaton/pgbaton/internal/trust"
)

// startRenewing starts the goroutine that renews. The caller holds the mutex.
func (m *Manager) startRenewing() {
	if !m.renews && m.life == open {
		m.renews = true
		m.start(m.renewOn)
	}
}

// renewOn renews what is held, and ends what could not be renewed.
func (m *Manager) renewOn() {
	ticker := time.NewTicker(m.cfg.TTL / 20)
	defer ticker.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-ticker.C:
		}
		m.step(func(a *actions) {
			for c := range m.claims {
				m.overdue(c, a)
			}
			late := func(g *giveBack) bool { return !a.now.Before(g.until) }
			m.returns.answer(late, m.expired(), a)
			if m.cfg.Pooled {
				m.returns.forget(late) // by the clock they are free
			}
			switch {
			case len(m.claims) == 0 || a.now.Sub(m.renewed) < m.cfg.TTL/3:
			case m.session != nil:
				m.renew(m.session, a, nil)
			default:
				m.sidecar.open()
			}
			m.tidy(a)
		})
	}
}

// expire ends a claim that can no longer be trusted: the clock may know it before renewOn has come to it.
func (m *Manager) expire(c *claim) { m.step(func(a *actions) { m.overdue(c, a) }) }

// overdue ends a claim that can no longer be trusted. Its slots go back: while the session lives, the server gives
// them to nobody soon.
func (m *Manager) overdue(c *claim, a *actions) {
	if c.lost == nil && !a.now.Before(c.trusted) {
		m.revoke(c, m.expired(), a)
	}
}

// revoke ends the permits of a claim for a reason, and has its slots freed if the session can still do it.
func (m *Manager) revoke(c *claim, reason error, a *actions) {
	var slots []int32
	for slot := range c.owners {
		slots = append(slots, slot)
	}
	a.reason = reason
	m.lose(c, reason, a)
	if c.session == m.session {
		m.giveBack(c, slots, nil, a)
	}
}

func (m *Manager) expired() error {
	return fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{
		Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("no renewal that was sent in the last %v (TTL %v) was answered; "+
			"this process, the network or the server stalled", trust.Span(m.cfg.TTL), m.cfg.TTL),
	})
}

// kept is a slot that is being renewed.
type kept struct {
	claim *claim
	slot  int32
}

// round is a renewal of everything: what is still to be answered of each claim. A claim whose slots are renewed by
// several statements is trusted as long as the one that was sent first can say, and not before all were answered.
type round map[*claim]*outstanding

type outstanding struct {
	parts int
	sent  time.Time // of the earliest part that was answered
}

// claimsOf are the claims whose slots a part renews.
func claimsOf(part []kept) []*claim {
	claims := make([]*claim, 0, 1)
	for _, k := range part {
		if len(claims) == 0 || claims[len(claims)-1] != k.claim {
			claims = append(claims, k.claim)
		}
	}
	return claims // each once: the slots of a claim are side by side
}

var stmtRenew = pipeline.Statement{Name: "pgbaton_renew", SQL: "SELECT * FROM pgbaton.renew_slots($1, $2, $3, $4, $5, $6)"}

// renew renews what is held, a part at a time. With then, it frees whatever else the holder holds in the same
// statement, and goes on with that when it was answered.
func (m *Manager) renew(s connection, a *actions, then func(a *actions)) {
	var all []kept
	for c := range m.claims {
		for slot := range c.owners {
			all = append(all, kept{c, slot})
		}
	}
	m.renewed = a.now
	parts := slices.Collect(slices.Chunk(all, perStatement))
	var returning []kept
	if then != nil { // what the statement does not name is freed, so there can be only one
		parts = [][]kept{all}
		for _, g := range slices.Concat(m.returns.fresh, m.returns.sent, m.returns.stuck) { // these are not others
			for _, slot := range g.slots {
				returning = append(returning, kept{g.claim, slot})
			}
		}
	}
	r := round{}
	for _, part := range parts {
		for _, c := range claimsOf(part) {
			if r[c] == nil {
				r[c] = &outstanding{}
			}
			r[c].parts++
		}
		a.ops = append(a.ops, m.renewal(s, part, returning, r, then))
	}
}

// renewal is a statement that renews slots, and others that are not to be freed as unknown.
func (m *Manager) renewal(s connection, part, returning []kept, r round, then func(a *actions)) *sidecar.Op {
	var semaphores, slots []int32
	var tokens []int64
	for _, k := range slices.Concat(part, returning) {
		semaphores, slots, tokens = append(semaphores, k.claim.semaphore), append(slots, k.slot), append(tokens, k.claim.base)
	}
	m.writes += len(slots)
	return &sidecar.Op{
		Statement: &stmtRenew, First: true, Alone: true, // whatever the others meet
		Params: [][]byte{
			pgtext.Int(s.holder()), pgtext.Ints(semaphores), pgtext.Ints(slots), pgtext.Ints(tokens),
			pgtext.Int(m.cfg.TTL.Milliseconds()), pgtext.Bool(then != nil),
		},
		Then: func(op *sidecar.Op) { m.wereRenewed(s, op, part, r, then) },
	}
}

// wereRenewed takes the answer to a renewal. A slot that somebody still owns here and the server does not know is lost.
func (m *Manager) wereRenewed(s connection, op *sidecar.Op, part []kept, r round, then func(a *actions)) {
	m.step(func(a *actions) {
		if then != nil {
			defer then(a) // also when it failed: what nobody knows of expires
		}
		places, err := parseRenewed(op)
		if err != nil {
			if !errors.Is(err, lockerr.Lost) {
				m.cfg.Report("permits could not be renewed", err)
			}
			for _, c := range claimsOf(part) {
				delete(r, c)
			}
			m.renewed = time.Time{} // again soon
			return
		}
		a.reason = errExpired
		for i, k := range part {
			if _, ok := places[int32(i+1)]; !ok && k.claim.owners[k.slot] != nil { //nolint:gosec // few
				m.drop(k.claim.owners[k.slot], a)
			}
		}
		for _, c := range claimsOf(part) {
			c.session = s
			r.answered(c, op.Sent, trust.Span(m.cfg.TTL))
		}
	})
}

// answered extends the trust in a claim when the last of its parts was answered.
func (r round) answered(c *claim, sent time.Time, span time.Duration) {
	left := r[c]
	if left == nil {
		return // another part has failed
	}
	if left.parts--; left.sent.IsZero() || sent.Before(left.sent) {
		left.sent = sent
	}
	if trusted := left.sent.Add(span); left.parts == 0 && trusted.After(c.trusted) {
		c.trusted = trusted
	}
}

// drop takes a lost permit out of its claim. Slots of it that are still held go back.
func (m *Manager) drop(p *Permit, a *actions) {
	for _, slot := range p.slots {
		delete(p.claim.owners, slot)
	}
	a.lost = append(a.lost, p)
	m.giveBack(p.claim, p.slots, nil, a)
}

const (
	// tidyAfter is after how many writes the table of slots is looked at.
	tidyAfter = 2000
	// tidyAbove is the size in bytes from which on it is written anew. It has a page or two while nobody holds
	// old snapshots.
	tidyAbove = 512 << 10
	// tidyPause follows an attempt for which the table was too busy.
	tidyPause = 10 * time.Second
	// tidyRefused follows one that was not the client's to make.
	tidyRefused = 10 * time.Minute
)

var stmtCompact = pipeline.Statement{Name: "pgbaton_compact", SQL: "SELECT pgbaton.compact_slots($1)"}

// tidy has the table of slots looked at when it was much written to.
func (m *Manager) tidy(a *actions) {
	if m.writes < tidyAfter || m.session == nil || a.now.Before(m.compact) {
		return
	}
	m.writes = 0
	a.ops = append(a.ops, &sidecar.Op{
		Statement: &stmtCompact, Alone: true, Params: [][]byte{pgtext.Int(tidyAbove)},
		Then: func(op *sidecar.Op) {
			pause := time.Duration(0)
			switch {
			case pgerr.Code(op.Err) == pgerr.InsufficientPrivilege:
				pause = tidyRefused
				m.cfg.Report("permits get slower: somebody holds an old snapshot, and the table of slots grows; as an operator: "+
					"SELECT pgbaton.compact_slots(524288)", op.Err)
			case op.Err != nil || len(op.Rows) != 1 || op.Rows[0][0] == nil:
				pause = tidyPause
			}
			m.mu.Lock()
			m.compact = time.Now().Add(pause)
			m.mu.Unlock()
		},
	})
}
