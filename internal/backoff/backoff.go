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
