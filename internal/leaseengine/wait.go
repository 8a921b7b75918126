package leaseengine

import (
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/chans"
)

// pollEvery is about how often the keys that others have are asked for. The row of a key says for a second whose turn it is.
const pollEvery = 125 * time.Millisecond

// advance is a key of which a turn is given up.
type advance struct{ key advisory.Key }

func advisoryKey(id int64, pair bool) advisory.Key { return advisory.Key{ID: id, Pair: pair} }

// Queue implements [engine.Engine]. The key is asked for at once, so that the row says who waits.
func (e *Engine) Queue(key advisory.Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.queued[key] == nil {
		e.queued[key] = &place{since: time.Now()}
		e.called = append(e.called, key)
		chans.Signal(e.poke)
	}
}

// Unqueue implements [engine.Engine]. A turn that is not used is given up, so that others need not wait for its end.
func (e *Engine) Unqueue(key advisory.Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.queued[key]
	delete(e.queued, key)
	if p == nil || !p.marked || e.closed {
		return
	}
	if a := e.anchor; a != nil && a.link != nil {
		l := a.link
		e.soon(0, func() { // not with the lock manager's mutex
			l.submit(op{forfeit: &advance{key}})
			l.pipe.Attend()
		})
	}
}

// call has a key asked for at once: it is this client's turn.
func (e *Engine) call(key advisory.Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.queued[key] != nil {
		e.called = append(e.called, key)
		chans.Signal(e.poke)
	}
}

// listen has the server notify the session when a turn of it comes.
func (e *Engine) listen(l *link) {
	if !e.cfg.Pooled && !l.listening.Swap(true) {
		l.pipe.Ask(&stmtListen, ignored{}, func(err error) {
			l.listening.Store(err == nil) // else the next call asks again
			if err == nil && e.cfg.Notified != nil {
				e.cfg.Notified("")
			}
		})
		l.pipe.Attend()
	}
}

// poll asks for the keys that others have, again and again: those that were called at once, all about every 125 ms.
func (e *Engine) poll() {
	timer := time.NewTimer(pollEvery)
	defer timer.Stop()
	next := time.Now()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-e.poke:
		case <-timer.C:
		}
		now := time.Now()
		e.mu.Lock()
		keys := e.called
		e.called = nil
		if all := !now.Before(next); all {
			keys = keys[:0]
			for key := range e.queued {
				keys = append(keys, key)
			}
			next = now.Add(backoff.About(pollEvery))
		}
		var l *link
		if e.anchor != nil {
			l = e.anchor.link
		}
		waits := len(e.queued) > 0
		e.mu.Unlock()
		if waits {
			timer.Reset(max(time.Until(next), time.Millisecond))
		}
		if l != nil && len(keys) > 0 {
			e.listen(l)
			e.manager.Sweep(keys)
		}
	}
}
