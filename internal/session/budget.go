package session

import (
	"sync"
	"time"
)

// wish is for how long a link that found no room is waited for; it asks again sooner than that.
const wish = 5 * time.Second

// Budget shares the connections that a client may open between links, waiting sessions and the ledger's. One place is
// always kept for a link and one for a waiting session.
type Budget struct {
	mu      sync.Mutex
	most    int
	links   int
	waiting int
	ledgers int       // at most one
	rows    bool      // a ledger was asked for: from then on its place is kept
	asked   time.Time // when a link found no room; zero if it is content

	// Wished is called, if it is set, when a waiting session should leave; see Crowded. It is set before the first Take.
	Wished func()
}

// NewBudget makes a budget of at most so many connections, which must be 2 or more.
func NewBudget(most int) *Budget { return &Budget{most: most} }

// Take takes a place for a role. False means that there is none now; for a link or a ledger, a waiting session will
// then be asked to leave, if that helps: see Lasting.
func (b *Budget) Take(role Role) bool {
	ok := b.take(role)
	if !ok && role != Waiting && b.Wished != nil && b.Crowded() {
		b.Wished()
	}
	return ok
}

func (b *Budget) take(role Role) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := 0
	switch {
	case role == Ledger:
		b.rows = true
	case b.rows && b.ledgers == 0 && b.most >= minSeparate:
		kept = 1
	}
	switch {
	case role == Waiting:
		if (b.waiting > 0 && b.wished()) || max(b.links, 1)+b.waiting+b.ledgers >= b.most {
			return false
		}
		b.waiting++
		return true
	case b.links+b.ledgers+kept >= b.most-1, role == Ledger && b.most < minSeparate:
		return false // one place is for waiting, and one for a link
	case b.links+b.waiting+b.ledgers >= b.most:
		b.asked = time.Now()
		return false
	case role == Link:
		b.links++
	default:
		b.ledgers++
	}
	b.asked = time.Time{}
	return true
}

// minSeparate is the smallest budget with a place for a ledger: one connection holds, one waits.
const minSeparate = 3

// Lasting says whether a ledger will find no place, even if all waiting sessions leave but one.
func (b *Budget) Lasting() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.most < minSeparate || b.links >= b.most-1
}

// Give returns a place.
func (b *Budget) Give(role Role) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch role {
	case Link:
		b.links--
	case Waiting:
		b.waiting--
	case Ledger:
		b.ledgers--
	}
}

// Crowded says whether a waiting session should leave for a link.
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
	return b.links + b.waiting + b.ledgers
}
