package desk

import (
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// queue sends an entry to the waiting room. The caller holds the mutex.
func (d *Desk) queue(e *entry) {
	if !e.standing {
		e.standing = true
		d.cfg.Room.Enter(e.key)
	}
}

// leave takes an entry out of the waiting room.
func (d *Desk) leave(e *entry) {
	if e.standing {
		e.standing = false
		d.cfg.Room.Leave(e.key)
	}
}

// settleTurn tells the room what became of the turn that it announced.
func (d *Desk) settleTurn(e *entry, taken bool) {
	if e.turn != nil {
		e.turn <- taken
		e.turn = nil
	}
}

// Need says in which mode the room should wait for a key, and until when anybody wants it; ok is
// false if nobody does at the moment, or nobody could use the turn: there is no link, or it is being asked already.
// A zero time is without end.
func (d *Desk) Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.entries[key]
	if e == nil || !e.standing || e.first == nil || e.phase == asking || len(d.seats) == 0 {
		return 0, time.Time{}, false
	}
	for w := e.first; w != nil; w = w.next {
		if w.until.IsZero() {
			return e.first.mode, time.Time{}, true
		}
		if w.until.After(until) {
			until = w.until
		}
	}
	return e.first.mode, until, true
}

// Turn says that the room is first in line for a key and that the key was free a moment ago. The answer
// comes on the channel: true when the turn was used or is not wanted any more, false when a passer-by
// was faster.
func (d *Desk) Turn(key advisory.Key) <-chan bool {
	answer := make(chan bool, 1)
	a := actions{now: time.Now()}
	d.mu.Lock()
	e := d.entries[key]
	if e == nil || !e.standing {
		d.mu.Unlock()
		answer <- true
		return answer
	}
	e.turn = answer
	d.advance(e, &a)
	d.mu.Unlock()
	d.run(&a, nil)
	return answer
}

// Sweep tries the keys that have no place in the room, in one round trip.
func (d *Desk) Sweep(keys []advisory.Key) {
	a := actions{now: time.Now()}
	d.mu.Lock()
	for _, key := range keys {
		if d.full() {
			break // they go on waiting: most of these tries would only find the key taken
		}
		if e := d.entries[key]; e != nil && e.standing && e.phase == idle && e.first != nil {
			d.ask(e, &a)
		}
	}
	d.mu.Unlock()
	d.run(&a, nil)
}

// A look at the lock table costs the server milliseconds, so only a client that holds a good part of it
// looks, and at most once a TTL.
const (
	manyLocks  = 16 // holding one lock in so many of the table's is holding many
	fullest    = 70 // percent of the table, above which new locks are refused
	percentage = 100
)

// Room is how many locks fit into the server's lock table before new ones are refused, if nobody else holds any.
func (d *Desk) Room() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lockTable * fullest / percentage
}

// pressure starts a look at the lock table when one is due, and returns what the last one found.
func (d *Desk) pressure(s *seat, a *actions) error {
	if d.claims*manyLocks < d.lockTable {
		d.crowded = nil
		return nil
	}
	if a.now.Sub(d.looked) >= d.cfg.TTL {
		d.looked = a.now
		a.ops = append(a.ops, submission{s, &link.Op{Kind: link.Look}})
	}
	return d.crowded
}

// sawTable takes the answer to a look.
func (d *Desk) sawTable(op *link.Op) {
	d.crowded = nil
	if percent := op.Count * percentage / int64(max(d.lockTable, 1)); op.Err == nil && percent >= fullest {
		d.crowded = fmt.Errorf("%w: the server's lock table is %d %% full (%d of about %d): "+
			"release some, or raise max_locks_per_transaction", lockerr.TooManyLocks, percent, op.Count, d.lockTable)
	}
}
