package link

import (
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
)

// jeopardy is the signal that more than half of the trust is gone without an answer.
type jeopardy struct {
	mu     sync.Mutex
	signal chan struct{} // made when asked for; closed when raised
	raised bool
}

// Jeopardy is closed while more than half of the time for which the link trusts itself has passed without
// an answer from the server: the network or the server may be gone. When an answer comes after all, a later
// call returns a channel that is open.
func (l *Link) Jeopardy() <-chan struct{} {
	j := &l.jeopardy
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.signal == nil {
		j.signal = make(chan struct{})
		if j.raised {
			close(j.signal)
		}
		chans.Signal(l.nudge) // the keeper must be there at the time
	}
	return j.signal
}

// watch raises the signal when it is time, and returns how long it is until then.
func (l *Link) watch(now time.Time) time.Duration {
	left := time.Duration(l.trusted.Load()) - now.Sub(l.born) - l.trustSpan()/2
	if left <= 0 {
		l.raise()
		return l.trustSpan()
	}
	return left
}

// raise closes the signal, for good if the link is lost.
func (l *Link) raise() {
	j := &l.jeopardy
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.raised && j.signal != nil {
		close(j.signal)
	}
	j.raised = true
	l.endangered.Store(true)
}

// relieve takes the signal back: an answer has come.
func (l *Link) relieve() {
	j := &l.jeopardy
	j.mu.Lock()
	defer j.mu.Unlock()
	j.raised, j.signal = false, nil
	l.endangered.Store(false)
}
