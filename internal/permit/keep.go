package permit

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

// trustSpan is for how long after a claim or renewal was sent its answer shows that the slots are held. The margin is
// for telling the holders before the server can give them to others.
func (d *Desk) trustSpan() time.Duration { return d.cfg.TTL - d.cfg.TTL/10 }

// keep starts the goroutine that renews. The caller holds the mutex.
func (d *Desk) keep() {
	if !d.keeping && !d.closed {
		d.keeping = true
		d.workers.Add(1)
		go d.keepOn()
	}
}

// keepOn renews what is held, and ends what could not be renewed.
func (d *Desk) keepOn() {
	defer d.workers.Done()
	ticker := time.NewTicker(d.cfg.TTL / 20)
	defer ticker.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-ticker.C:
		}
		d.step(func(a *actions) {
			for b := range d.blocks {
				d.overdue(b, a)
			}
			late := func(v *leave) bool { return !a.now.Before(v.until) }
			d.leaving.answer(late, d.expired(), a)
			if d.cfg.Pooled {
				d.leaving.forget(late) // by the clock they are free
			}
			switch {
			case len(d.blocks) == 0 || a.now.Sub(d.renewed) < d.cfg.TTL/3:
			case d.session != nil:
				d.renew(d.session, a, nil)
			default:
				d.cfg.Ledger.Current() // opens one
			}
			d.tidy(a)
		})
	}
}

// expire ends a block that can no longer be trusted: the clock may know it before the keeper has come to it.
func (d *Desk) expire(b *block) { d.step(func(a *actions) { d.overdue(b, a) }) }

// overdue ends a block that can no longer be trusted. Its slots go back: while the session lives, the server gives
// them to nobody soon.
func (d *Desk) overdue(b *block, a *actions) {
	if b.lost != nil || a.now.Before(b.trusted) {
		return
	}
	var slots []int32
	for slot := range b.owners {
		slots = append(slots, slot)
	}
	a.reason = d.expired()
	d.lose(b, a.reason, a)
	if b.session == d.session {
		d.putBack(b, slots, nil, a)
	}
}

func (d *Desk) expired() error {
	return fmt.Errorf("%w: %w", lockerr.Lost, &lockerr.LossError{
		Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("no renewal that was sent in the last %v (TTL %v) was answered; "+
			"this process, the network or the server stood still", d.trustSpan(), d.cfg.TTL),
	})
}

// kept is a slot that is being renewed.
type kept struct {
	block *block
	slot  int32
}

// round is a renewal of everything: what is still to be answered of each block. A block whose slots are renewed by
// several statements is trusted as long as the one that was sent first can say, and not before all were answered.
type round map[*block]*outstanding

type outstanding struct {
	parts int
	sent  time.Time // of the earliest part that was answered
}

// blocksOf are the blocks whose slots a part renews.
func blocksOf(part []kept) []*block {
	blocks := make([]*block, 0, 1)
	for _, k := range part {
		if len(blocks) == 0 || blocks[len(blocks)-1] != k.block {
			blocks = append(blocks, k.block)
		}
	}
	return blocks // each once: the slots of a block stand together
}

var stmtRenew = pipeline.Statement{Name: "pgbaton_renew", SQL: "SELECT * FROM pgbaton.renew_slots($1, $2, $3, $4, $5, $6)"}

// renew renews what is held, a part at a time. With then, it frees whatever else the holder holds in the same
// statement, and goes on with that when it was answered.
func (d *Desk) renew(s *sidecar.Session, a *actions, then func(a *actions)) {
	var all []kept
	for b := range d.blocks {
		for slot := range b.owners {
			all = append(all, kept{b, slot})
		}
	}
	d.renewed = a.now
	parts := slices.Collect(slices.Chunk(all, perStatement))
	var leaving []kept
	if then != nil { // what the statement does not name is freed, so there can be only one
		parts = [][]kept{all}
		for _, v := range slices.Concat(d.leaving.fresh, d.leaving.sent, d.leaving.stuck) { // these are not others
			for _, slot := range v.slots {
				leaving = append(leaving, kept{v.block, slot})
			}
		}
	}
	r := round{}
	for _, part := range parts {
		for _, b := range blocksOf(part) {
			if r[b] == nil {
				r[b] = &outstanding{}
			}
			r[b].parts++
		}
		a.ops = append(a.ops, d.renewal(s, part, leaving, r, then))
	}
}

// renewal is a statement that renews slots, and others that are not to be freed as unknown.
func (d *Desk) renewal(s *sidecar.Session, part, leaving []kept, r round, then func(a *actions)) *sidecar.Op {
	var semaphores, slots []int32
	var tokens []int64
	for _, k := range slices.Concat(part, leaving) {
		semaphores, slots, tokens = append(semaphores, k.block.semaphore), append(slots, k.slot), append(tokens, k.block.base)
	}
	d.writes += len(slots)
	return &sidecar.Op{
		Statement: &stmtRenew, First: true, Alone: true, // whatever the others meet
		Params: [][]byte{
			number(s.Holder), array(semaphores), array(slots), array(tokens),
			number(d.cfg.TTL.Milliseconds()), boolean(then != nil),
		},
		Then: func(op *sidecar.Op) { d.wereRenewed(s, op, part, r, then) },
	}
}

// wereRenewed takes the answer to a renewal. A slot that somebody still owns here and the server does not know is lost.
func (d *Desk) wereRenewed(s *sidecar.Session, op *sidecar.Op, part []kept, r round, then func(a *actions)) {
	d.step(func(a *actions) {
		if then != nil {
			defer then(a) // also when it failed: what nobody knows of expires
		}
		places, err := parseRenewed(op)
		if err != nil {
			if !errors.Is(err, lockerr.Lost) {
				d.cfg.Report("permits could not be renewed", err)
			}
			for _, b := range blocksOf(part) {
				delete(r, b)
			}
			d.renewed = time.Time{} // again soon
			return
		}
		a.reason = errExpired
		for i, k := range part {
			if _, ok := places[int32(i+1)]; !ok && k.block.owners[k.slot] != nil { //nolint:gosec // few
				d.drop(k.block.owners[k.slot], a)
			}
		}
		for _, b := range blocksOf(part) {
			b.session = s
			r.answered(b, op.Sent, d.trustSpan())
		}
	})
}

// answered extends the trust in a block when the last of its parts was answered.
func (r round) answered(b *block, sent time.Time, span time.Duration) {
	left := r[b]
	if left == nil {
		return // another part has failed
	}
	if left.parts--; left.sent.IsZero() || sent.Before(left.sent) {
		left.sent = sent
	}
	if trusted := left.sent.Add(span); left.parts == 0 && trusted.After(b.trusted) {
		b.trusted = trusted
	}
}

// drop takes a lost permit out of its block. Slots of it that are still held go back.
func (d *Desk) drop(p *Permit, a *actions) {
	for _, slot := range p.slots {
		delete(p.block.owners, slot)
	}
	a.over = append(a.over, p)
	d.putBack(p.block, p.slots, nil, a)
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
func (d *Desk) tidy(a *actions) {
	if d.writes < tidyAfter || d.session == nil || a.now.Before(d.compact) {
		return
	}
	d.writes = 0
	a.ops = append(a.ops, &sidecar.Op{
		Statement: &stmtCompact, Alone: true, Params: [][]byte{number(tidyAbove)},
		Then: func(op *sidecar.Op) {
			pause := time.Duration(0)
			switch {
			case pgerr.Code(op.Err) == pgerr.InsufficientPrivilege:
				pause = tidyRefused
				d.cfg.Report("permits get slower: somebody holds an old snapshot, and the table of slots grows; as an operator: "+
					"SELECT pgbaton.compact_slots(524288)", op.Err)
			case op.Err != nil || len(op.Rows) != 1 || op.Rows[0][0] == nil:
				pause = tidyPause
			}
			d.mu.Lock()
			d.compact = time.Now().Add(pause)
			d.mu.Unlock()
		},
	})
}
