package locks

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// takeSets lets 64 goroutines in 4 processes take sets of 5 of 50 keys, and sums up what they counted.
func takeSets(t *testing.T, kind string, load time.Duration) map[string]int64 {
	t.Helper()
	const processes = 4
	dsn := lab.Database(t)
	var workers []*worker.Process
	var calls []*worker.Call
	for range processes {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Sets, Kind: kind, DSN: dsn, Key: "set", Keys: 50, Count: 5, Goroutines: 16, For: load,
		}))
	}
	counts := map[string]int64{}
	for _, call := range calls {
		a := call.Wait()
		require.Positive(t, a.Counts["sets"], "a process got nothing")
		for name, n := range a.Counts {
			if name == "longest" {
				counts[name] = max(counts[name], n)
			} else {
				counts[name] += n
			}
		}
	}
	judge(t, workers...)
	return counts
}

// Sets in random order never deadlock, and exclude like single locks.
func TestSets(t *testing.T) {
	const load = 3 * time.Second
	counts := takeSets(t, worker.BySet, load)
	require.Zero(t, counts["deadlocks"])
	lab.Note(t, "AcquireAll of 5 of 50 keys, 64 goroutines in 4 processes: %.0f sets/s", float64(counts["sets"])/load.Seconds())
}
