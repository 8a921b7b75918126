package locks

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// takeSets lets 64 goroutines in 4 processes take sets of 5 of 50 keys, and sums up what they counted.
func takeSets(t *testing.T, dsn, kind string, load time.Duration) map[string]int64 {
	t.Helper()
	const processes = 4
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
		for name, n := range a.Counts {
			if name == "longest" {
				counts[name] = max(counts[name], n)
			} else {
				counts[name] += n
			}
		}
	}
	judge(t, workers...)
	require.Positive(t, counts["sets"], "nobody got anything")
	return counts
}

// Sets in random order never deadlock, and exclude like single locks.
func TestSets(t *testing.T) {
	const load = 3 * time.Second
	counts := takeSets(t, lab.Database(t), worker.BySet, load)
	require.Zero(t, counts["deadlocks"])
	lab.Note(t, "AcquireAll of 5 of 50 keys, 64 goroutines in 4 processes: %.0f sets/s", float64(counts["sets"])/load.Seconds())
}

// The same by hand, one key after the other in random order: deadlocks all the time, each of which ends with
// ErrDeadlock for one side, while the rest goes on. Who is in none waits for those who are, so there is little progress.
func TestSets_ByHand(t *testing.T) {
	const (
		load = 12 * time.Second
		// A wait is published after 1 s; half a second later the cycle that it closes should have ended.
		bound = 3 * time.Second
	)
	dsn := lab.Database(t)
	control := dbtest.Connect(t, dsn)
	stop, stopped := make(chan struct{}), make(chan struct{})
	cycles, longest := 0, time.Duration(0)
	go func() {
		defer close(stopped)
		cycles, longest = watchCycles(control, stop)
	}()
	counts := takeSets(t, dsn, worker.ByHand, load)
	close(stop)
	<-stopped
	require.Positive(t, counts["deadlocks"])
	lab.Note(t, "5 of 50 keys one by one in random order, 64 goroutines in 4 processes: %.1f sets/s, %d deadlocks",
		float64(counts["sets"])/load.Seconds(), counts["deadlocks"])
	lab.Note(t, "%d cycles seen in the table of waits, the longest for %v", cycles, longest.Round(time.Millisecond))
	require.Less(t, longest, bound)
	require.Zero(t, dbtest.Value[int](t, control, "SELECT count(*)::int FROM pgbaton.waits()"), "waits that are over")
}

// watchCycles looks at the table of waits until it is stopped. It returns how many cycles there were, and for how long
// the longest was seen.
func watchCycles(control *pgx.Conn, stop <-chan struct{}) (int, time.Duration) {
	seen := map[int64]time.Time{} // by its youngest wait
	longest, count := time.Duration(0), 0
	for {
		select {
		case <-stop:
			return count, longest
		case <-time.After(50 * time.Millisecond):
		}
		waits := map[int64]int64{} // whom each waits for
		rows, err := control.Query(context.Background(),
			"SELECT a.id, b.id FROM pgbaton.waits() AS a JOIN pgbaton.waits() AS b ON a.key = ANY (b.held_keys)")
		if err != nil {
			return count, time.Hour
		}
		var from, to int64
		if _, err = pgx.ForEachRow(rows, []any{&from, &to}, func() error { waits[from] = to; return nil }); err != nil {
			return count, time.Hour
		}
		present := map[int64]bool{}
		for start := range waits {
			youngest, at := start, start
			for range waits {
				at = waits[at]
				youngest = max(youngest, at)
				if at == 0 || at == start {
					break
				}
			}
			if at == start {
				present[youngest] = true
			}
		}
		for id := range present {
			if _, known := seen[id]; !known {
				seen[id] = time.Now()
				count++
			}
			longest = max(longest, time.Since(seen[id]))
		}
		for id := range seen {
			if !present[id] {
				delete(seen, id)
			}
		}
	}
}
