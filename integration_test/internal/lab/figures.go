package lab

import (
	"fmt"
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

// Report tells a figure and requires its longest to be within a bound.
func Report(tb testing.TB, what string, s Spread, bound time.Duration) {
	tb.Helper()
	tb.Logf("FIGURE %s: %v (bound %v)", what, s, bound)
	require.LessOrEqual(tb, s.Max(), bound, what)
}

// Note tells a figure that has no bound.
func Note(tb testing.TB, format string, args ...any) {
	tb.Helper()
	tb.Logf("FIGURE "+format, args...)
}
