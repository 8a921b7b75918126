// Package grant holds what every kind of grant has: an end, which comes once, with a reason, and is told to
// all that want to know.
package grant

import "sync"

// End is the end of a grant. The zero value has not come.
type End struct {
	mu     sync.Mutex
	reason error
	told   bool          // all that OnEnd was given were called
	done   chan struct{} // made when asked for; closed when told
	onEnd  []func(error)
}

// Reason returns why the grant is over; nil while it is not.
func (e *End) Reason() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reason
}

// Done is closed when the grant is over, and all that OnEnd was given have been called: a caller that sees it closed sees the contexts
// ended as well.
func (e *End) Done() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done == nil {
		e.done = make(chan struct{})
		if e.told {
			close(e.done)
		}
	}
	return e.done
}

// OnEnd calls f once with the reason when the grant is over, or at once if it is.
func (e *End) OnEnd(f func(error)) {
	e.mu.Lock()
	reason := e.reason
	if reason == nil {
		e.onEnd = append(e.onEnd, f)
	}
	e.mu.Unlock()
	if reason != nil {
		f(reason)
	}
}

// Finish ends the grant and tells. Only the first call does, and returns true.
func (e *End) Finish(reason error) bool {
	e.mu.Lock()
	if e.reason != nil {
		e.mu.Unlock()
		return false
	}
	e.reason = reason
	if tell := e.onEnd; tell != nil {
		e.onEnd = nil
		e.mu.Unlock()
		for _, f := range tell {
			f(reason)
		}
		e.mu.Lock()
	}
	defer e.mu.Unlock()
	e.told = true
	if e.done != nil {
		close(e.done)
	}
	return true
}
