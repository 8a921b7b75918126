package session

import (
	"sync"
	"time"
)

// wish is for how long a link that found no room is waited for; it asks again sooner than that.
const wish = 5 * time.Second

// Budget shares the connections that a client may open between links and waiting sessions. One place is
// always kept for a link and one for a waiting session.
type Budget struct {
	mu      sync.Mutex
	most    int
	links   int
	waiting int
	asked   time.Time // when a link found no room; zero if it is content
}

// NewBudget makes a budget of at most so many connections, which must be 2 or more.
func NewBudget(most int) *Budget { return &Budget{most: most} }

// Take takes a place for a role. False means that there is none now; for a link, a waiting session will
// then be asked to leave.
func (b *Budget) Take(role Role) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case role == Link && b.links < b.most-1 && b.links+b.waiting < b.most:
		b.links++
		b.asked = time.Time{}
	case role == Link:
		if b.links < b.most-1 {
			b.asked = time.Now()
		}
		return false
	case (b.waiting == 0 || !b.wished()) && max(b.links, 1)+b.waiting < b.most:
		b.waiting++
	default:
		return false
	}
	return true
}

// Give returns a place.
func (b *Budget) Give(role Role) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if role == Link {
		b.links--
	} else {
		b.waiting--
	}
}

// Crowded says whether a waiting session should leave for a link.
func (b *Budget) Crowded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waiting > 1 && b.wished()
}

func (b *Budget) wished() bool { return !b.asked.IsZero() && time.Since(b.asked) < wish }
