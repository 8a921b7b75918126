package worker

import (
	"sync"
	"sync/atomic"
	"time"
)

// spell is for how long a load goes on: until its time is up or it is told to stop, and from then on until it has achieved
// something, which on a busy machine may not have happened yet, for [patience] at the most.
type spell struct {
	stopped *atomic.Bool
	end     time.Time

	once sync.Once
	due  time.Time // when it was first seen that the time is up
}

// over reports whether to end, for a load that has achieved something or not.
func (s *spell) over(achieved bool) bool {
	now := time.Now()
	if !s.stopped.Load() && now.Before(s.end) {
		return false
	}
	s.once.Do(func() { s.due = now })
	return achieved || now.Sub(s.due) > patience
}
