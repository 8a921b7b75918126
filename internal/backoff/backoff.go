// Package backoff spaces out retries.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	first   = 2 * time.Millisecond
	longest = 250 * time.Millisecond
)

// Wait waits before the retry that follows the given attempt, counted from 1: a random time between zero and
// a bound that doubles with each attempt, from 4 ms to 250 ms. It returns the context's error if that ends first.
//
// The whole range is random ("full jitter"), because those who collided once would otherwise meet again.
func Wait(ctx context.Context, attempt int) error {
	timer := time.NewTimer(rand.N(Bound(attempt))) //nolint:gosec // not a secret
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return ctx.Err() // rather fail when both are ready
	}
}

// Bound is the longest wait after the given attempt.
func Bound(attempt int) time.Duration {
	return min(first<<min(attempt, 16), longest)
}

// Redial spaces out the attempts to open a connection that is always wanted. The zero value is ready for use.
type Redial struct{ failures int }

const (
	firstRedial   = 20 * time.Millisecond
	longestRedial = 2 * time.Second
)

// Failed takes note of a failure and returns for how long to pause: a random time around one that doubles with each failure, from
// 20 ms to 2 s.
func (r *Redial) Failed() time.Duration {
	pause := min(firstRedial<<min(r.failures, 16), longestRedial)
	r.failures++
	return Jittered(pause)
}

// Opened takes note of a success.
func (r *Redial) Opened() { r.failures = 0 }

// Jittered returns a random time from a half of d to one and a half.
func Jittered(d time.Duration) time.Duration {
	return d/2 + rand.N(d) //nolint:gosec // not a secret
}
