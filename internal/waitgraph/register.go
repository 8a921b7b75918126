package waitgraph

import (
	"slices"
	"sync"
)

// processes has the waits of all clients of this process: for when there is no board to see them on, and since of
// these it is known at any moment what has become of them.
var processes = register{waits: map[*Watched]string{}, publishers: map[publisher]bool{}, rows: map[row]*Watched{}}

type register struct {
	mu         sync.Mutex
	last       int64
	waits      map[*Watched]string // with the database that they are in
	publishers map[publisher]bool  // in whose names waits of this process were published
	rows       map[row]*Watched    // by their newest rows on the board
}

// publisher is a holder in a database.
type publisher struct {
	place  string
	holder int64
}

type row struct {
	publisher

	id int64
}

// add gives the wait its number in this process.
func (r *register) add(place string, w *Watched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	w.wait.ID = r.last
	r.waits[w] = place
}

func (r *register) remove(w *Watched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waits, w)
	delete(r.rows, w.row)
}

// publishes reports that waits of this process are published by a holder.
func (r *register) publishes(p publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publishers[p] = true
}

// withdrew reports that what a holder has published is no longer of interest.
func (r *register) withdrew(p publisher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.publishers, p)
}

// published reports that waits are on the board, each with an id.
func (r *register) published(p publisher, ids []int64, waits []*Watched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, w := range waits {
		delete(r.rows, w.row)
		w.row = row{p, ids[i]}
		if _, on := r.waits[w]; on {
			r.rows[w.row] = w
		}
	}
}

// reach reports whether what the board has of these waits is of use at the moment.
func (r *register) reach(waits []*Watched, yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range waits {
		w.visible = yes
	}
}

// behind returns the wait that a row on the board represents; false if it is not one of this process, nil
// if it is over, or the row is not the last of it.
func (r *register) behind(place string, w Wait) (*Watched, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := publisher{place, w.Holder}
	if !r.publishers[p] {
		return nil, false
	}
	local := r.rows[row{p, w.ID}]
	if local != nil && local.ended {
		return nil, true
	}
	return local, true
}

// going leaves out the waits that a detector has ended.
func (r *register) going(waits []*Watched) []*Watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(waits, func(w *Watched) bool { return w.ended })
}

// here returns the waits in a database that go on, if one of them cannot be seen on the board.
func (r *register) here(place string) []*Watched {
	r.mu.Lock()
	defer r.mu.Unlock()
	var here []*Watched
	all := true
	for w, other := range r.waits {
		if other == place && !w.ended {
			here = append(here, w)
			all = all && w.visible
		}
	}
	if all {
		return nil
	}
	return here
}

// anyHidden reports whether one of the waits cannot be seen on the board.
func (r *register) anyHidden(waits []*Watched) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(waits, func(w *Watched) bool { return !w.visible })
}

// finish reports whether a wait shall end for a cycle, and makes a note of it. It shall not if another wait of the cycle
// has ended, as far as this process knows.
func (r *register) finish(w *Watched, c Cycle, local func(w Wait) (*Watched, bool)) bool {
	members := make([]*Watched, 0, len(c))
	for _, other := range c {
		if m, here := local(other); here {
			members = append(members, m)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range members {
		if m == nil || m.ended {
			return false
		}
		if _, on := r.waits[m]; !on {
			return false
		}
	}
	w.ended = true
	return true
}
