package pipeline

import (
	"cmp"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
)

// keepAlive watches the pipeline's trust, pings while it is idle, and calls the pipeline's own reader when it is idle.
func (p *Pipeline[O]) keepAlive() {
	defer p.cfg.Workers.Done()
	timer := time.NewTimer(idleAfter)
	defer timer.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-p.nudge:
		case <-timer.C:
		}
		now := time.Now()
		if !p.Trusted(now) {
			p.Fail(p.Expired())
			return
		}
		timer.Reset(p.upkeep(now))
	}
}

// upkeep does what is due and returns for how long nothing else will be.
func (p *Pipeline[O]) upkeep(now time.Time) time.Duration {
	pingEvery := cmp.Or(p.cfg.Silence, p.cfg.TTL/3)
	p.mu.Lock()
	idle := len(p.flight) == 0 && len(p.queue)+len(p.asides) == 0
	silent, quiet := now.Sub(p.lastSent), now.Sub(p.lastAnswer)
	attended := p.attended
	needsReader := idle && !p.reading && quiet >= idleAfter
	p.mu.Unlock()

	trustLeft := p.trustLeft(now)
	wait := min(trustLeft, pingEvery)
	switch {
	case idle && silent >= pingEvery:
		p.ping(now.Add(trustLeft))
	case idle:
		wait = min(wait, pingEvery-silent)
	}
	if needsReader {
		chans.Signal(p.wake) // when it stops it will nudge
	} else if !attended {
		wait = min(wait, idleAfter) // callers read for themselves; look again soon
	}
	return max(wait, time.Millisecond)
}

// ping shows a sign of life. The keeper must not hang in a write that the network does not take.
func (p *Pipeline[O]) ping(trustEnds time.Time) {
	_ = p.conn.SetWriteDeadline(trustEnds)
	p.Ask(p.signal, pulse{}, nil)
	_ = p.conn.SetWriteDeadline(time.Time{})
	p.Attend()
}
