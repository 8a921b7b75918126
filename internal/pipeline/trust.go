package pipeline

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/trust"
)

func (p *Pipeline[O]) trustSpan() time.Duration { return trust.Span(p.cfg.TTL) }

// Trusted reports whether, at a moment, what the session holds can still be relied on.
func (p *Pipeline[O]) Trusted(now time.Time) bool {
	return int64(now.Sub(p.born)) < p.trusted.Load()
}

// trustLeft returns for how long the trust lasts.
func (p *Pipeline[O]) trustLeft(now time.Time) time.Duration {
	return time.Duration(p.trusted.Load()) - now.Sub(p.born)
}

// trust extends the trust to what an answer to a message sent at a moment proves.
func (p *Pipeline[O]) trust(sent time.Time) {
	p.trusted.Store(int64(sent.Sub(p.born) + p.trustSpan()))
	if p.jeopardy.raised.Load() {
		p.jeopardy.relieve()
	}
}

// Expired returns the cause of the loss of a pipeline that can no longer be trusted.
func (p *Pipeline[O]) Expired() error {
	return &lockerr.LossError{Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("no answer from the server to anything "+
		"sent in the last %v (TTL %v); this process or the network stalled", p.trustSpan(), p.cfg.TTL)}
}

// jeopardy is the signal that more than half of the trust is gone without an answer, or all of it.
type jeopardy struct {
	raised atomic.Bool // changed with mu

	mu     sync.Mutex
	signal chan struct{} // made when asked for; closed when raised
	final  bool          // the pipeline is lost: raised for good
}

// Jeopardy returns a channel that is closed while more than half of the time for which the pipeline trusts itself has
// passed without an answer from the server: the network or the server may be gone. When an answer comes after all, a later
// call returns a channel that is open.
func (p *Pipeline[O]) Jeopardy() <-chan struct{} {
	j := &p.jeopardy
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.signal == nil {
		j.signal = make(chan struct{})
		if j.raised.Load() {
			close(j.signal)
		}
		chans.Signal(p.nudge) // the keeper must be there at the time
	}
	return j.signal
}

// watch raises the signal when it is time, and returns how long it is until then.
func (p *Pipeline[O]) watch(now time.Time) time.Duration {
	left := p.trustLeft(now) - p.trustSpan()/2
	if left <= 0 {
		p.jeopardy.raise(false)
		return p.trustSpan()
	}
	return left
}

// raise closes the signal, for good if the pipeline is lost.
func (j *jeopardy) raise(final bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.raised.Load() && j.signal != nil {
		close(j.signal)
	}
	j.raised.Store(true)
	j.final = j.final || final
}

// relieve takes the signal back: an answer has come. That of a lost pipeline stays.
func (j *jeopardy) relieve() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.final {
		j.signal = nil
		j.raised.Store(false)
	}
}
