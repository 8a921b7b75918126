package locks

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
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
	return counts
}

// Sets in random order never deadlock, and exclude like single locks.
func TestSets(t *testing.T) {
	t.Parallel()
	load := testkit.Brief(3*time.Second, 1500*time.Millisecond)
	counts := takeSets(t, lab.Database(t), worker.BySet, load)
	require.Positive(t, counts["sets"], "nobody got anything")
	require.Zero(t, counts["deadlocks"])
	testkit.Figure(t, "AcquireAll of 5 of 50 keys, 64 goroutines in 4 processes: %.0f sets/s", float64(counts["sets"])/load.Seconds())
}

// The same by hand, one key after the other in random order: deadlocks all the time, each of which ends with
// ErrDeadlock for one side, while the rest goes on. Who is in none waits for those who are, so there is little progress.
func TestSets_ByHand(t *testing.T) {
	t.Parallel()
	load := testkit.Brief(12*time.Second, 5*time.Second)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	stop, stopped := make(chan struct{}), make(chan struct{})
	cycles, longest, gap := 0, time.Duration(0), time.Duration(0)
	go func() {
		defer close(stopped)
		cycles, longest, gap = watchCycles(control, stop)
	}()
	counts := takeSets(t, dsn, worker.ByHand, load)
	// A busy machine may grant so little that nobody closes a cycle, or none for the seconds after which it is seen.
	for counts["deadlocks"] == 0 && load < time.Minute {
		load *= 3
		counts = takeSets(t, dsn, worker.ByHand, load)
	}
	close(stop)
	<-stopped
	require.Positive(t, counts["deadlocks"])
	testkit.Figure(t, "5 of 50 keys one by one in random order, 64 goroutines in 4 processes: %.1f sets/s, %d deadlocks",
		float64(counts["sets"])/load.Seconds(), counts["deadlocks"])
	testkit.Figure(t, "%d cycles seen in the table of waits", cycles)
	// A wait is published after 1 s; half a second later the cycle that it closes should have ended.
	lab.Report(t, "longest cycle seen in the table of waits", lab.Spread{longest}, 3*time.Second)
	// Everybody waits for one key, which one holds, so cycles have no wait in common: each has one victim, and there is none
	// without a cycle. A cycle is in the table for at least 0.3 s; who looks less often may miss some.
	if gap < 250*time.Millisecond {
		require.LessOrEqual(t, counts["deadlocks"], int64(cycles), "more victims than cycles")
	} else {
		testkit.Figure(t, "the table was not looked at for %v: victims are not compared with cycles", gap)
	}
	require.Zero(t, testkit.Value[int](t, control, "SELECT count(*)::int FROM pgbaton.waits()"), "waits that are over")
}

// watchCycles looks at the table of waits until it is stopped. It returns how many cycles there were, for how long
// the longest was seen, and how far two looks were from one another at the most.
func watchCycles(control *pgx.Conn, stop <-chan struct{}) (count int, longest, gap time.Duration) {
	seen := map[int64]time.Time{} // by its youngest wait
	for last := time.Now(); ; {
		select {
		case <-stop:
			return len(seen), longest, gap
		case <-time.After(50 * time.Millisecond):
		}
		present, err := cyclesNow(control)
		if err != nil {
			return len(seen), time.Hour, time.Hour
		}
		now := time.Now()
		gap, last = max(gap, now.Sub(last)), now
		for _, id := range present {
			if _, known := seen[id]; !known {
				seen[id] = now
			}
			longest = max(longest, now.Sub(seen[id]))
		}
	}
}

// cyclesNow returns the youngest wait of each cycle in the table of waits.
func cyclesNow(control *pgx.Conn) ([]int64, error) {
	waits := map[int64]int64{} // whom each waits for
	rows, err := control.Query(context.Background(), "WITH w AS MATERIALIZED (SELECT * FROM pgbaton.waits()) "+
		"SELECT a.id, b.id FROM w AS a JOIN w AS b ON a.key = ANY (b.held_keys)")
	if err != nil {
		return nil, err
	}
	var from, to int64
	if _, err = pgx.ForEachRow(rows, []any{&from, &to}, func() error { waits[from] = to; return nil }); err != nil {
		return nil, err
	}
	var youngest []int64
	for start := range waits {
		at := waits[start]
		for steps := 0; at < start && steps < len(waits); steps++ { // among older ones; 0 is nobody, and waits for nobody
			at = waits[at]
		}
		if at == start {
			youngest = append(youngest, start)
		}
	}
	return youngest, nil
}
