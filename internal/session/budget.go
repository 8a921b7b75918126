package session

import (
	"sync"
	"time"
)

// wish is for how long a session that found no place is waited for; it is asked for again sooner than that.
const wish = 5 * time.Second

// Budget shares the connections that a client may open between sessions that hold locks, sessions that wait, and the sidecar.
// One place is always kept for locks and one for a waiting session.
type Budget struct {
	mu       sync.Mutex
	most     int
	holding  int
	waiting  int
	sidecars int       // at most one
	rows     bool      // a sidecar was asked for: from then on its place is kept
	asked    time.Time // when a session that does not wait found no place; zero if none is wanted
}

// NewBudget makes a budget of at most so many connections, which must be 2 or more.
func NewBudget(most int) *Budget { return &Budget{most: most} }

// Take takes a place for a role. False means that there is none now. Where it is not for a waiting session, one of those
// should then be asked to leave if [Budget.Crowded] says so; see also Lasting.
func (b *Budget) Take(role Role) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := 0
	switch {
	case role == Sidecar:
		b.rows = true
	case b.rows && b.sidecars == 0 && b.most >= minSeparate:
		kept = 1
	}
	switch {
	case role == Waiting:
		if (b.waiting > 0 && b.wished()) || max(b.holding, 1)+b.waiting+b.sidecars >= b.most {
			return false
		}
		b.waiting++
		return true
	case b.holding+b.sidecars+kept >= b.most-1, role == Sidecar && b.most < minSeparate:
		return false // one place is for waiting, and one for locks
	case b.holding+b.waiting+b.sidecars >= b.most:
		b.asked = time.Now()
		return false
	case role == Holding:
		b.holding++
	default:
		b.sidecars++
	}
	b.asked = time.Time{}
	return true
}

// minSeparate is the smallest budget with a place for a sidecar: one connection holds, one waits.
const minSeparate = 3

// Lasting reports whether a sidecar will find no place, even if all waiting sessions leave but one.
func (b *Budget) Lasting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most < minSeparate || b.holding >= b.most-1
}

// Spare reports whether a sidecar would find a place that nobody else needs now.
func (b *Budget) Spare() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most >= minSeparate && !b.wished() && b.holding+b.sidecars < b.most-1 && b.holding+b.waiting+b.sidecars < b.most
}

// Give returns a place.
func (b *Budget) Give(role Role) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch role {
	case Holding:
		b.holding--
	case Waiting:
		b.waiting--
	case Sidecar:
		b.sidecars--
	}
}

// Crowded reports whether a waiting session should leave for one that is needed more.
func (b *Budget) Crowded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting > 1 && b.wished()
}

func (b *Budget) wished() bool { return !b.asked.IsZero() && time.Since(b.asked) < wish }

// Taken returns how many places are taken.
func (b *Budget) Taken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.holding + b.waiting + b.sidecars
}
