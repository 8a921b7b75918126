// Package backoff spaces out retries of a call (Wait), attempts to get a connection back (Reconnect), and looks at regular
// times (About).
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
// The whole range is random ("full jitter"), because callers that collided once would otherwise meet again.
func Wait(ctx context.Context, attempt int) error {
	return sleep(ctx, rand.N(Bound(attempt))) //nolint:gosec // not a secret
}

// Bound is the longest wait after the given attempt.
func Bound(attempt int) time.Duration {
	return min(first<<min(attempt, 16), longest)
}

// About is a random time between a half and three halves of d.
func About(d time.Duration) time.Duration {
	return d/2 + rand.N(max(d, 1)) //nolint:gosec // not a secret
}

const (
	firstPause   = 20 * time.Millisecond
	longestPause = 2 * time.Second
)

// Reconnect spaces out the attempts of one goroutine to get a connection back: about 20 ms after the first failure,
// about twice as long after each further one, about 2 s at the most. The zero value has seen no failure.
//
// Half of a pause is certain and the rest random: a server that comes back is not met by all clients at the same moment,
// and one that refuses at once is not asked in a hot loop.
type Reconnect struct{ failures int }

// Connected reports that an attempt has succeeded: the next failure is the first again.
func (r *Reconnect) Connected() { r.failures = 0 }

// Pause returns how long to pause after an attempt that failed.
func (r *Reconnect) Pause() time.Duration {
	const doublings = 7 // enough for the longest
	pause := min(firstPause<<min(r.failures, doublings), longestPause)
	r.failures++
	return About(pause)
}

// Soon is a first pause, without counting a failure.
func Soon() time.Duration { return About(firstPause) }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return ctx.Err() // rather fail when both are ready
	}
}
