package deadlock

import "sync"

// processes has the waits of all clients of this process, for when there is no board to see them on.
var processes = register{waits: map[*Watched]string{}}

type register struct {
	mu    sync.Mutex
	last  int64
	waits map[*Watched]string // with the database that they are in
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
}

// at returns the waits in a database.
func (r *register) at(place string) []Wait {
	r.mu.Lock()
	var here []*Watched
	for w, other := range r.waits {
		if other == place {
			here = append(here, w)
		}
	}
	r.mu.Unlock()
	waits := make([]Wait, 0, len(here))
	for _, w := range here {
		waits = append(waits, w.current())
	}
	return waits
}
