package waitgraph

import (
	"context"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/internal/pgtext"
)

// Board is where the processes that share a database publish their waits.
type Board interface {
	// Holder is in whose name waits are published now. When it changes, what was published before no longer
	// counts, as soon as the server knows.
	Holder(ctx context.Context) (int64, error)
	// Publish publishes waits and returns their ids, ascending. It is not called with too many for a statement.
	Publish(ctx context.Context, holder int64, waits []Wait) (ids []int64, err error)
	// Withdraw withdraws waits of a holder, or all if ids is nil.
	Withdraw(ctx context.Context, holder int64, ids []int64) error
	// Waits are all waits of holders that live. Others see by the number of the look that the holder's are right.
	Waits(ctx context.Context, holder, look int64) ([]Wait, error)
}

// ownRows is what a detector knows of its rows on the board.
type ownRows struct {
	by    publisher          // in whose name they are; none before the first
	known map[*Watched]int64 // their ids
	// unknown are rows that nobody knows: the answer to their publication did not come.
	unknown []int64
	doubt   bool  // there may be such rows
	looks   int64 // how often the board has been read
	size    int   // how many rows it had
}

// none reports whether nothing is on the board.
func (r *ownRows) none() bool { return len(r.known) == 0 && len(r.unknown) == 0 && !r.doubt }

// exchange brings the board up to date with this client's waits, and returns all that are on it. When it fails
// halfway, the next one goes on from there.
func (d *Detector) exchange(mine []*Watched) ([]Wait, error) {
	if d.board == nil {
		return nil, nil
	}
	r := &d.rows
	if len(mine) == 0 && r.none() {
		return nil, nil
	}
	if err := d.establish(); err != nil {
		return nil, err
	}
	if err := d.withdraw(mine); err != nil {
		return nil, err
	}
	if len(mine) == 0 {
		if r.doubt {
			return nil, d.withdrawAll()
		}
		return nil, nil
	}
	if err := d.publish(mine); err != nil {
		return nil, err
	}
	var waits []Wait
	err := d.within(func(ctx context.Context) (err error) {
		waits, err = d.board.Waits(ctx, r.by.holder, r.looks+1) // the same again if there is no answer
		return err
	})
	if err != nil {
		return nil, err
	}
	r.looks++
	r.size = len(waits)
	return d.sift(waits), nil
}

// within gives a statement its time: much less than a session takes to be given up, but more when there are more rows,
// and when less was not enough.
func (d *Detector) within(statement func(ctx context.Context) error) error {
	rows := max(d.rows.size, len(d.rows.known))
	most := patience + time.Duration(rows)*patiencePerWait + time.Duration(min(d.misses, mostMisses))*patience/2
	ctx, cancel := context.WithTimeout(d.ctx, most)
	defer cancel()
	return statement(ctx)
}

// establish finds out in whose name rows are published. With a new session that is a new one; what the one before has
// published might count until the server knows that its session is gone, so it is withdrawn.
func (d *Detector) establish() error {
	r := &d.rows
	return d.within(func(ctx context.Context) error {
		holder, err := d.board.Holder(ctx)
		if err != nil || holder == r.by.holder {
			return err
		}
		if !r.none() {
			if err := d.board.Withdraw(ctx, r.by.holder, nil); err != nil {
				return err
			}
		}
		processes.withdrew(r.by)
		*r = ownRows{by: publisher{d.place(), holder}, known: map[*Watched]int64{}}
		processes.publishes(r.by)
		return nil
	})
}

// withdraw takes from the board what is over, what says something else than is true by now, and what nobody knows.
func (d *Detector) withdraw(mine []*Watched) error {
	r := &d.rows
	goesOn := make(map[*Watched]bool, len(mine))
	for _, w := range mine {
		goesOn[w] = true
	}
	ids := slices.Clone(r.unknown)
	var gone []*Watched
	for w, id := range r.known {
		if !goesOn[w] || !slices.Equal(w.published, w.holds()) {
			ids = append(ids, id)
			gone = append(gone, w)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	for part := range slices.Chunk(ids, chunk) {
		err := d.within(func(ctx context.Context) error { return d.board.Withdraw(ctx, r.by.holder, part) })
		if err != nil {
			return err // all of them again the next time
		}
	}
	for _, w := range gone {
		delete(r.known, w)
	}
	r.unknown = nil
	return nil
}

func (d *Detector) withdrawAll() error {
	r := &d.rows
	err := d.within(func(ctx context.Context) error { return d.board.Withdraw(ctx, r.by.holder, nil) })
	if err == nil {
		clear(r.known)
		r.unknown, r.doubt = nil, false
	}
	return err
}

// publish puts on the board what is not there yet.
func (d *Detector) publish(mine []*Watched) error {
	r := &d.rows
	var fresh []*Watched
	for _, w := range mine {
		if _, known := r.known[w]; !known {
			fresh = append(fresh, w)
		}
	}
	for part := range slices.Chunk(fresh, chunk) {
		waits := make([]Wait, len(part))
		for i, w := range part {
			waits[i] = w.current()
		}
		var ids []int64
		err := d.within(func(ctx context.Context) (err error) {
			ids, err = d.board.Publish(ctx, r.by.holder, waits)
			return err
		})
		if err == nil && len(ids) != len(part) {
			err = pgtext.ErrAnswer
		}
		if err != nil {
			r.doubt = true
			return err
		}
		for i, w := range part {
			w.published = waits[i].Holds
			r.known[w] = ids[i]
		}
		processes.published(r.by, ids, part)
	}
	return nil
}

// sift leaves out what the board has of this process's waits that are over, and finds rows of this detector's that
// nobody knows.
func (d *Detector) sift(published []Wait) []Wait {
	r := &d.rows
	ids := make(map[int64]bool, len(r.known))
	for _, id := range r.known {
		ids[id] = true
	}
	r.doubt = false // what was sent before the board was read has been carried out before, or never is
	return slices.DeleteFunc(published, func(w Wait) bool {
		if w.Holder == r.by.holder && !ids[w.ID] {
			r.unknown = append(r.unknown, w.ID)
		}
		local, here := processes.behind(r.by.place, w)
		return here && local == nil
	})
}

// farewell withdraws what is left on the board. When that fails, it goes with the holder.
func (d *Detector) farewell(ctx context.Context) {
	r := &d.rows
	if !r.none() {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_ = d.board.Withdraw(bounded, r.by.holder, nil)
	}
	processes.withdrew(r.by)
}
