package lab

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Spread is a list of durations, ordered.
type Spread []time.Duration

// NewSpread orders nanoseconds.
func NewSpread(nanoseconds []int64) Spread {
	s := make(Spread, 0, len(nanoseconds))
	for _, ns := range nanoseconds {
		s = append(s, time.Duration(ns))
	}
	slices.Sort(s)
	return s
}

// At is a percentile, from 0 to 100.
func (s Spread) At(percent int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return s[min(len(s)*percent/100, len(s)-1)]
}

// Max is the longest.
func (s Spread) Max() time.Duration { return s.At(100) }

func (s Spread) String() string {
	return fmt.Sprintf("n %d, p50 %v, p99 %v, max %v", len(s), round(s.At(50)), round(s.At(99)), round(s.Max()))
}

func round(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

// Figures reports whether the run measures: it is on a machine that does nothing else, one test at a time, and a figure
// that misses its target fails its test. The variable PGBATON_FIGURES asks for it.
//
// In every other run a figure is only told. What must hold on any machine, however slow and busy, is asserted without a
// clock, or with one that is far from what a machine does: [Hang] ends what hangs, and [Slow] is short of the TTL of a minute,
// after which the server gives up who is silent, so it tells what is served at once from what is served by that.
func Figures() bool { return os.Getenv("PGBATON_FIGURES") != "" }

const (
	// Hang is how long anything may take that has to happen.
	Hang = 90 * time.Second
	// Slow is how long anything may take that has to happen before a TTL of a minute has passed.
	Slow = 40 * time.Second
)

// Report tells a figure with its target. It requires the longest to be within the target in a run for figures, and
// within [Slow] in any other.
func Report(tb testing.TB, what string, s Spread, target time.Duration) {
	tb.Helper()
	tb.Logf("figure: %s: %v (target %v)", what, s, target)
	bound := max(target, Slow)
	if Figures() {
		bound = target
	}
	require.LessOrEqual(tb, s.Max(), bound, what)
}

// RequireFew tells how many statements a second a crowd of waiters sends. With one for each waiter they would be hundreds.
func RequireFew(tb testing.TB, perSecond float64) {
	tb.Helper()
	const target = 20.0
	tb.Logf("figure: crowd: %.1f statements a second (target %v)", perSecond, target)
	bound := 3 * target
	if Figures() {
		bound = target
	}
	require.LessOrEqual(tb, perSecond, bound, "statements a second")
}
