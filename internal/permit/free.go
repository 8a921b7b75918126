package permit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// leave is slots that go back to the server. While the holder's session lives nobody else takes them from it, so
// they are freed again and again until the server has done it, also when nobody waits for that any longer.
type leave struct {
	block  *block
	slots  []int32   // at most perStatement
	permit *Permit   // whose Release waits for it; nil if none does
	until  time.Time // Release waits no longer
}

// perStatement is how many slots a statement frees or renews at the most, so that what is sent fits into the
// socket's buffer.
const perStatement = 500

// end answers the Release that waits for the slots, when they were the last of its permit's.
func (v *leave) end(result error, a *actions) {
	p := v.permit
	if p == nil {
		return
	}
	v.permit = nil
	if p.result == nil {
		p.result = result
	}
	if p.parts--; p.parts == 0 {
		a.freed = append(a.freed, p)
	}
}

// departures are the slots that go back to the server. Guarded by the desk's mutex.
type departures struct {
	fresh []*leave // to be sent
	sent  []*leave // in the statement under way
	stuck []*leave // others had the table, or rows of them
	rest  bool     // before those are sent again
}

// none reports whether nothing is left to free.
func (f *departures) none() bool { return len(f.fresh)+len(f.sent)+len(f.stuck) == 0 }

// answer ends the waits for leaves of which something is true.
func (f *departures) answer(which func(*leave) bool, reason error, a *actions) {
	for _, all := range [][]*leave{f.fresh, f.sent, f.stuck} {
		for _, v := range all {
			if which(v) {
				v.end(reason, a)
			}
		}
	}
}

// forget drops leaves of which something is true, but for those under way.
func (f *departures) forget(which func(*leave) bool) {
	f.fresh = slices.DeleteFunc(f.fresh, which)
	f.stuck = slices.DeleteFunc(f.stuck, which)
}

func every(*leave) bool { return true }

// putBack has slots freed. The permit is told when they are.
func (d *Desk) putBack(b *block, slots []int32, p *Permit, a *actions) {
	if len(b.owners) == 0 {
		delete(d.blocks, b)
	}
	for part := range slices.Chunk(slots, perStatement) {
		d.leaving.fresh = append(d.leaving.fresh, &leave{block: b, slots: part, permit: p, until: b.trusted})
		if p != nil {
			p.parts++
		}
	}
	d.free(a)
	d.dismiss(a)
}

var stmtFree = pipeline.Statement{Name: "pgbaton_free_slots", SQL: "SELECT * FROM pgbaton.free_slots($1, $2, $3, $4, $5)"}

// free frees the slots that leave, in one statement, unless one is under way. Those that were stuck come after a rest,
// when there are no others, each by itself: it may be the one whose row others have.
func (d *Desk) free(a *actions) {
	f := &d.leaving
	if d.session == nil || len(f.sent) > 0 {
		return
	}
	switch {
	case len(f.fresh) > 0:
		count, size := 0, 0
		for _, v := range f.fresh {
			if size += len(v.slots); size > perStatement && count > 0 {
				break
			}
			count++
		}
		f.sent = slices.Clone(f.fresh[:count])
		f.fresh = slices.Delete(f.fresh, 0, count)
	case len(f.stuck) > 0 && !f.rest:
		f.sent = []*leave{f.stuck[0]}
		f.stuck = slices.Delete(f.stuck, 0, 1)
	default:
		return
	}
	var semaphores, slots []int32
	var tokens, gates []int64
	for _, v := range f.sent {
		for _, slot := range v.slots {
			semaphores, slots = append(semaphores, v.block.semaphore), append(slots, slot)
			tokens, gates = append(tokens, v.block.base), append(gates, v.block.line.gate.ID)
		}
	}
	d.writes += len(slots)
	began := a.now
	a.ops = append(a.ops, &sidecar.Op{
		Statement: &stmtFree, First: true,
		Params: [][]byte{number(d.session.Holder), array(semaphores), array(slots), array(tokens), array(gates)},
		Then:   func(op *sidecar.Op) { d.freed(op, began) },
	})
	d.tidy(a)
}

// freed takes the answer to a statement that frees.
func (d *Desk) freed(op *sidecar.Op, began time.Time) {
	d.step(func(a *actions) {
		f := &d.leaving
		sent := f.sent
		f.sent = nil
		answer, err := parseFreed(op)
		if err != nil && !errors.Is(err, lockerr.Lost) {
			err = fmt.Errorf("%w: the server did not confirm that the permit is free: %w", lockerr.Lost, err)
		}
		place := int32(0)
		for _, v := range sent {
			result := err
			for range v.slots {
				place++
				if _, ok := answer.places[place]; !ok && result == nil {
					result = errExpired
				}
			}
			if sidecar.Passes(op.Err) && d.session != nil {
				f.stuck = append(f.stuck, v)
			} else {
				v.end(result, a)
			}
		}
		for _, gate := range answer.awaited {
			if l := d.gates[gate]; l != nil && l.atGate {
				chans.Signal(l.poke)
			} else {
				a.notify = append(a.notify, gate)
			}
		}
		if sidecar.Passes(op.Err) && d.session != nil {
			d.rest(a.now.Sub(began))
		}
		d.free(a)
		d.dismiss(a)
	})
}

// rest lets what is stuck wait for about as long as it has kept the session from others. The caller holds the mutex.
func (d *Desk) rest(about time.Duration) {
	const least, most = 20 * time.Millisecond, time.Second
	if d.leaving.rest {
		return
	}
	d.leaving.rest = true
	time.AfterFunc(min(max(about, least), most), func() {
		d.step(func(a *actions) {
			d.leaving.rest = false
			d.free(a)
		})
	})
}

var errExpired = fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{
	Reason: lockerr.LeaseExpired, Cause: errors.New("by the database's clock the permit had expired, or its semaphore was removed"),
})
