// Package chans has what is often done with channels that carry no values.
package chans

// Signal leaves a mark in a channel of capacity 1, for a goroutine that has not yet seen the last one, or has.
func Signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Closed reports whether a channel that nothing is sent to is closed.
func Closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
