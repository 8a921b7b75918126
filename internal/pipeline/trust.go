package pipeline

import (
	"fmt"
	"time"

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
}

// Expired returns the cause of the loss of a pipeline that can no longer be trusted.
func (p *Pipeline[O]) Expired() error {
	return &lockerr.LossError{Reason: lockerr.LeaseExpired, Cause: fmt.Errorf("no answer from the server to anything "+
		"sent in the last %v (TTL %v); this process or the network stalled", p.trustSpan(), p.cfg.TTL)}
}
