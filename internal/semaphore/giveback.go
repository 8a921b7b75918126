package semaphore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// giveBack is slots that go back to the server. While the holder's session lives nobody else takes them from it, so
// they are freed again and again until the server has done it, also when nobody waits for that any longer.
type giveBack struct {
	claim  *claim
	slots  []int32   // at most perStatement
	permit *Permit   // whose Release waits for it; nil if none does
	until  time.Time // Release waits no longer
}

// perStatement is how many slots a statement frees or renews at the most, so that what is sent fits into the
// socket's buffer.
const perStatement = 500

// answer answers the Release that waits for the slots, when they were the last of its permit's.
func (g *giveBack) answer(result error, a *actions) {
	p := g.permit
	if p == nil {
		return
	}
	g.permit = nil
	if p.result == nil {
		p.result = result
	}
	if p.parts--; p.parts == 0 {
		a.freed = append(a.freed, p)
	}
}

// giveBacks are the slots that go back to the server. Each is in one of three lists. Guarded by the manager's mutex.
//
//	           | the statement is sent | answered   | undone: others had rows | Release no longer waits
//	fresh      | sent                  |            |                         | fresh, freed nevertheless
//	sent       |                       | gone       | stuck                   | sent
//	stuck      | sent, alone           |            |                         | stuck; behind a pooler gone
type giveBacks struct {
	fresh   []*giveBack // to be sent
	sent    []*giveBack // in the statement under way
	stuck   []*giveBack // others had the table, or rows of them
	pausing bool        // the stuck ones are not sent yet
}

// none reports whether nothing is left to free.
func (g *giveBacks) none() bool { return len(g.fresh)+len(g.sent)+len(g.stuck) == 0 }

// answer answers the releases that wait for slots of which something is true.
func (g *giveBacks) answer(which func(*giveBack) bool, reason error, a *actions) {
	for _, all := range [][]*giveBack{g.fresh, g.sent, g.stuck} {
		for _, one := range all {
			if which(one) {
				one.answer(reason, a)
			}
		}
	}
}

// forget drops slots of which something is true, unless they are under way.
func (g *giveBacks) forget(which func(*giveBack) bool) {
	g.fresh = slices.DeleteFunc(g.fresh, which)
	g.stuck = slices.DeleteFunc(g.stuck, which)
}

func every(*giveBack) bool { return true }

// giveBack has slots freed. The permit is told when they are.
func (m *Manager) giveBack(c *claim, slots []int32, p *Permit, a *actions) {
	if len(c.owners) == 0 {
		delete(m.claims, c)
	}
	for part := range slices.Chunk(slots, perStatement) {
		m.returns.fresh = append(m.returns.fresh, &giveBack{claim: c, slots: part, permit: p, until: c.trusted})
		if p != nil {
			p.parts++
		}
	}
	m.free(a)
	m.dismiss(a)
}

var stmtFree = pipeline.Statement{Name: "pgbaton_free_slots", SQL: "SELECT * FROM pgbaton.free_slots($1, $2, $3, $4, $5)"}

// free frees the slots that go back, in one statement, unless one is under way. Stuck slots come after a pause,
// when there are no others, each by itself: it may be the one whose row others have.
func (m *Manager) free(a *actions) {
	g := &m.returns
	if m.session == nil || len(g.sent) > 0 {
		return
	}
	switch {
	case len(g.fresh) > 0:
		count, size := 0, 0
		for _, one := range g.fresh {
			if size += len(one.slots); size > perStatement && count > 0 {
				break
			}
			count++
		}
		g.sent = slices.Clone(g.fresh[:count])
		g.fresh = slices.Delete(g.fresh, 0, count)
	case len(g.stuck) > 0 && !g.pausing:
		g.sent = []*giveBack{g.stuck[0]}
		g.stuck = slices.Delete(g.stuck, 0, 1)
	default:
		return
	}
	var semaphores, slots []int32
	var tokens, gates []int64
	for _, one := range g.sent {
		for _, slot := range one.slots {
			semaphores, slots = append(semaphores, one.claim.semaphore), append(slots, slot)
			tokens, gates = append(tokens, one.claim.base), append(gates, one.claim.line.gate.ID)
		}
	}
	m.writes += len(slots)
	began := a.now
	a.ops = append(a.ops, &sidecar.Op{
		Statement: &stmtFree, First: true,
		Params: [][]byte{
			pgtext.Int(m.session.holder()), pgtext.Ints(semaphores), pgtext.Ints(slots), pgtext.Ints(tokens), pgtext.Ints(gates),
		},
		Then: func(op *sidecar.Op) { m.wereFreed(op, began) },
	})
	m.tidy(a)
}

// wereFreed takes the answer to a statement that frees.
func (m *Manager) wereFreed(op *sidecar.Op, began time.Time) {
	m.step(func(a *actions) {
		g := &m.returns
		sent := g.sent
		g.sent = nil
		answer, err := parseFreed(op)
		if err != nil && !errors.Is(err, lockerr.Lost) {
			err = fmt.Errorf("%w: the server did not confirm that the permit is free: %w", lockerr.Lost, err)
		}
		again := sidecar.Passes(op.Err) && m.session != nil
		place := int32(0)
		for _, one := range sent {
			result := err
			for range one.slots {
				place++
				if _, ok := answer.places[place]; !ok && result == nil {
					result = errExpired
				}
			}
			if again {
				g.stuck = append(g.stuck, one)
			} else {
				one.answer(result, a)
			}
		}
		for _, gate := range answer.awaited {
			if l := m.gates[gate]; l != nil && l.state.atGate() {
				chans.Signal(l.poke)
			} else {
				a.notify = append(a.notify, gate)
			}
		}
		if again {
			m.pauseFreeing(a.now.Sub(began))
		}
		m.free(a)
		m.dismiss(a)
	})
}

// pauseFreeing lets what is stuck wait for about as long as it has kept the session from others. The caller holds the mutex.
func (m *Manager) pauseFreeing(about time.Duration) {
	const least, most = 20 * time.Millisecond, time.Second
	if m.returns.pausing {
		return
	}
	m.returns.pausing = true
	m.start(func() {
		timer := time.NewTimer(min(max(about, least), most))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-m.noneLeft:
		}
		m.step(func(a *actions) {
			m.returns.pausing = false
			m.free(a)
		})
	})
}

var errExpired = fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{
	Reason: lockerr.LeaseExpired, Cause: errors.New("by the database's clock the permit had expired, or its semaphore was removed"),
})
