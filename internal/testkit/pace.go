package testkit

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Patience bounds a wait that ends by itself unless something hangs. A busy machine is slow by seconds; a minute is
// long enough for any, so that a test that fails for it has found a hang.
const Patience = time.Minute

// stuck is how long a test with a [Context] may take, its waits for its turn among parallel tests included.
const stuck = 8 * time.Minute

// errStuck is the cause with which a [Context] ends.
var errStuck = errors.New("the test hangs")

// Context returns the test's context, which ends when the test hangs: the test then fails by its own name, long before
// the run's timeout ends all tests. The context has no deadline, because a callee may do otherwise when it sees one.
func Context(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithCancelCause(tb.Context())
	timer := time.AfterFunc(stuck, func() { cancel(errStuck) })
	tb.Cleanup(func() {
		timer.Stop()
		cancel(nil)
	})
	return ctx
}

// Rounds returns how many rounds a hammer makes: n, or a fifth of them under go test -short, and never none.
func Rounds(n int) int {
	if testing.Short() {
		return max(n/5, 1)
	}
	return n
}

// Length returns how long a storm lasts: d, or a third of it under go test -short.
func Length(d time.Duration) time.Duration {
	if testing.Short() {
		return d / 3
	}
	return d
}

// Brief returns the second of two amounts with -short, else the first.
func Brief[T any](full, brief T) T {
	if testing.Short() {
		return brief
	}
	return full
}

// Eventually waits until a condition that only the server can tell of holds. It has longer than [Patience], because what it waits for
// may be the end of a TTL of so long.
func Eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	const limit = 3 * Patience / 2
	for end := time.Now().Add(limit); !condition(); time.Sleep(2 * time.Millisecond) {
		require.True(tb, time.Now().Before(end), "not within %v: %s", limit, what)
	}
}

// Figure logs a measured value. No test fails for one, because a busy machine may be late by itself; make figures
// prints them.
func Figure(tb testing.TB, format string, args ...any) {
	tb.Helper()
	tb.Logf("figure: "+format, args...)
}
