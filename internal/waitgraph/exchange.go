package waitgraph

import (
	"context"
	"slices"
	"time"
)

// Board is where the processes that share a database publish their waits.
type Board interface {
	// Holder is in whose name waits are published now. When it changes, what was published before does not count any
	// more, as soon as the server knows.
	Holder(ctx context.Context) (int64, error)
	// Publish publishes waits and returns their ids, ascending. It is not called with too many for a statement.
	Publish(ctx context.Context, holder int64, waits []Wait) (ids []int64, err error)
	// Withdraw withdraws waits of a holder, or all if ids is nil.
	Withdraw(ctx context.Context, holder int64, ids []int64) error
	// Waits are all waits of holders that live. Others see by the number of the look that the holder's are right.
	Waits(ctx context.Context, holder, look int64) ([]Wait, error)
}

// posts is what a detector knows of its rows on the board.
type posts struct {
	seat  seat               // in whose name they are; none before the first
	known map[*Watched]int64 // their ids
	// unknown are rows that nobody knows any more: the answer to their publication did not come.
	unknown []int64
	doubt   bool  // there may be such rows
	looks   int64 // how often the board has been read
	size    int   // how many rows it had
}

// none says whether nothing is on the board.
func (p *posts) none() bool { return len(p.known) == 0 && len(p.unknown) == 0 && !p.doubt }

// exchange brings the board up to date with this client's waits, and returns all that are on it. When it fails
// halfway, the next one goes on from there.
func (d *Detector) exchange(mine []*Watched) ([]Wait, error) {
	if d.board == nil {
		return nil, nil
	}
	p := &d.posts
	if len(mine) == 0 && p.none() {
		return nil, nil
	}
	if err := d.take(); err != nil {
		return nil, err
	}
	if err := d.withdraw(mine); err != nil {
		return nil, err
	}
	if len(mine) == 0 {
		if p.doubt {
			return nil, d.withdrawAll()
		}
		return nil, nil
	}
	if err := d.publish(mine); err != nil {
		return nil, err
	}
	var waits []Wait
	err := d.within(func(ctx context.Context) (err error) {
		waits, err = d.board.Waits(ctx, p.seat.holder, p.looks+1) // the same again if there is no answer
		return err
	})
	if err != nil {
		return nil, err
	}
	p.looks++
	p.size = len(waits)
	return d.sift(waits), nil
}

// within gives a statement its time: much less than a session takes to be given up, but more when there are more rows,
// and when less was not enough.
func (d *Detector) within(statement func(ctx context.Context) error) error {
	rows := max(d.posts.size, len(d.posts.known))
	most := patience + time.Duration(rows)*patiencePerWait + time.Duration(min(d.misses, mostMisses))*patience/2
	ctx, cancel := context.WithTimeout(d.ctx, most)
	defer cancel()
	return statement(ctx)
}

// take finds out in whose name rows are published. With a new session that is a new one; what the one before has
// published might count until the server knows that its session is gone, so it is withdrawn.
func (d *Detector) take() error {
	p := &d.posts
	return d.within(func(ctx context.Context) error {
		holder, err := d.board.Holder(ctx)
		if err != nil || holder == p.seat.holder {
			return err
		}
		if !p.none() {
			if err := d.board.Withdraw(ctx, p.seat.holder, nil); err != nil {
				return err
			}
		}
		processes.rise(p.seat)
		*p = posts{seat: seat{d.place(), holder}, known: map[*Watched]int64{}}
		processes.sit(p.seat)
		return nil
	})
}

// withdraw takes from the board what is over, what says something else than is true by now, and what nobody knows.
func (d *Detector) withdraw(mine []*Watched) error {
	p := &d.posts
	goesOn := make(map[*Watched]bool, len(mine))
	for _, w := range mine {
		goesOn[w] = true
	}
	ids := slices.Clone(p.unknown)
	var gone []*Watched
	for w, id := range p.known {
		if !goesOn[w] || !slices.Equal(w.published, w.holds()) {
			ids = append(ids, id)
			gone = append(gone, w)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	for part := range slices.Chunk(ids, chunk) {
		err := d.within(func(ctx context.Context) error { return d.board.Withdraw(ctx, p.seat.holder, part) })
		if err != nil {
			return err // all of them again the next time
		}
	}
	for _, w := range gone {
		delete(p.known, w)
	}
	p.unknown = nil
	return nil
}

func (d *Detector) withdrawAll() error {
	p := &d.posts
	err := d.within(func(ctx context.Context) error { return d.board.Withdraw(ctx, p.seat.holder, nil) })
	if err == nil {
		clear(p.known)
		p.unknown, p.doubt = nil, false
	}
	return err
}

// publish puts on the board what is not there yet.
func (d *Detector) publish(mine []*Watched) error {
	p := &d.posts
	var fresh []*Watched
	for _, w := range mine {
		if _, known := p.known[w]; !known {
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
			ids, err = d.board.Publish(ctx, p.seat.holder, waits)
			return err
		})
		if err == nil && len(ids) != len(part) {
			err = errAnswer
		}
		if err != nil {
			p.doubt = true
			return err
		}
		for i, w := range part {
			w.published = waits[i].Holds
			p.known[w] = ids[i]
		}
		processes.published(p.seat, ids, part)
	}
	return nil
}

// sift leaves out what the board has of this process's waits that are over, and finds rows of this detector's that
// nobody knows.
func (d *Detector) sift(published []Wait) []Wait {
	p := &d.posts
	ids := make(map[int64]bool, len(p.known))
	for _, id := range p.known {
		ids[id] = true
	}
	p.doubt = false // what was sent before the board was read has been carried out before, or never is
	return slices.DeleteFunc(published, func(w Wait) bool {
		if w.Holder == p.seat.holder && !ids[w.ID] {
			p.unknown = append(p.unknown, w.ID)
		}
		local, here := processes.behind(p.seat.place, w)
		return here && local == nil
	})
}

// leave withdraws what is left on the board. When that fails, it goes with the holder.
func (d *Detector) leave(ctx context.Context) {
	p := &d.posts
	if !p.none() {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_ = d.board.Withdraw(bounded, p.seat.holder, nil)
	}
	processes.rise(p.seat)
}
