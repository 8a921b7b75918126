package demo

import (
	"slices"
	"time"
)

// summary describes a set of durations. The zero value is that of none.
type summary struct {
	average time.Duration
	p99     time.Duration
	longest time.Duration
}

func summarize(durations []time.Duration) summary {
	n := len(durations)
	if n == 0 {
		return summary{}
	}
	sorted := slices.Sorted(slices.Values(durations))
	var sum time.Duration
	for _, d := range sorted {
		sum += d
	}
	return summary{
		average: sum / time.Duration(n),
		p99:     sorted[(99*n+99)/100-1], // nearest rank
		longest: sorted[n-1],
	}
}

func perSecond(n int, elapsed time.Duration) float64 {
	if elapsed <= 0 {
		return 0
	}
	return float64(n) / elapsed.Seconds()
}
