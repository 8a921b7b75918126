package handover

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Result is what was seen of a job.
type Result struct {
	Idle   Spread // from a release while somebody waited to the next grant
	Waits  Spread // from the call to the grant, of all
	Grants int
}

// Spread is a list of durations, ordered.
type Spread []time.Duration

// At is a percentile, from 0 to 100.
func (s Spread) At(percent int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return s[min(len(s)*percent/100, len(s)-1)]
}

// judge pairs each release with the grant that it made possible. Of a semaphore with capacity c, grant c+k cannot
// come before release k; from that release on the permit lies idle. It counts if somebody waited by
// then, whoever gets it in the end: one that came later than the waiters ends the idleness as well.
func judge(grants []Grant, capacity int) (Result, error) {
	result := Result{Grants: len(grants)}
	slices.SortFunc(grants, func(a, b Grant) int { return cmp.Compare(a.Got, b.Got) })
	releases := make([]int64, 0, len(grants))
	for _, g := range grants {
		releases = append(releases, g.Released)
		result.Waits = append(result.Waits, time.Duration(g.Got-g.Called))
	}
	slices.Sort(releases)
	slices.Sort(result.Waits)
	for k, released := range releases {
		if k+capacity >= len(grants) {
			break
		}
		next := grants[k+capacity]
		if next.Got < released {
			return result, fmt.Errorf("more than %d held at the same time", capacity)
		}
		if slices.ContainsFunc(grants[k+capacity:], func(g Grant) bool { return g.Called < released }) {
			result.Idle = append(result.Idle, time.Duration(next.Got-released))
		}
	}
	slices.Sort(result.Idle)
	return result, nil
}
