package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Windows checks that after a run that succeeded nobody ran the same job within its window. Runs are events of the kind [Ran]; each was
// recorded between the call of Once and the beginning of its func. The grants are those of the runs' locks.
func Windows(runs []Event, grants []*Grant, window time.Duration) error {
	type run struct {
		name  string
		token int64
	}
	done := map[run]bool{}
	for _, g := range grants {
		if !g.Lost {
			done[run{g.Key, g.Token}] = true
		}
	}
	runs = slices.SortedFunc(slices.Values(runs), func(a, b Event) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(a.Token, b.Token))
	})
	for i := 1; i < len(runs); i++ {
		earlier, later := runs[i-1], runs[i]
		if earlier.Key != later.Key || !done[run{earlier.Key, earlier.Token}] {
			continue
		}
		if time.Duration(later.At-earlier.From) < window-time.Millisecond {
			return fmt.Errorf("%q ran twice in a window of %v: %+v, %+v", later.Key, window, earlier, later)
		}
	}
	return nil
}
