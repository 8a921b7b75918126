package locks

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 8 between processes: three of them hammer one key, and none waits for longer than a few tenures of the
// others.
func TestFairness_Processes(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	lab.Counters(t, control, "fair", 1)
	var workers []*worker.Process
	var calls []*worker.Call
	for range 3 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Hammer, DSN: dsn, Key: "fair", Goroutines: 6,
			For: testkit.Brief(4*time.Second, 2*time.Second), MaxConns: 2,
		}))
	}
	for _, call := range calls {
		call.Wait()
	}
	all := collect(t, workers...)
	verify(t, all)
	sortByGot(all)
	others, tenures, most, longest := overtakes(all)
	testkit.Figure(t, "fairness: %d grants; while one waited, others got at the most %d grants in %d tenures (on average %.1f); "+
		"longest wait %v", len(all), most, tenures, others, longest)
	perProcess := map[int]int{}
	for _, g := range all {
		perProcess[g.Process]++
	}
	testkit.Figure(t, "fairness: grants by process %v", perProcess)
	require.Len(t, perProcess, 3)
	// Two others, 64 grants each, and a few rounds of them: a process may join the queue again behind both. One that a busy
	// machine has stopped is overtaken meanwhile, as often as may be; its other waits are as short as everybody's.
	for process, average := range turnsOfOthers(all) {
		testkit.Figure(t, "fairness: process %d waited for %.1f tenures of others on average", process, average)
		require.LessOrEqual(t, average, 16.0)
	}
	if lab.Figures() {
		require.LessOrEqual(t, tenures, 16)
		for _, n := range perProcess {
			require.Greater(t, n, len(all)/12, "a process hardly got a turn: %v", perProcess)
		}
	}
}

func sortByGot(all []*history.Grant) []*history.Grant {
	slices.SortFunc(all, func(a, b *history.Grant) int { return cmp.Compare(a.Got, b.Got) })
	return all
}

// turnsOfOthers returns, for each process, how many tenures others had on average while it waited for one of its own.
func turnsOfOthers(all []*history.Grant) map[int]float64 {
	turns, waits := map[int]int{}, map[int]int{}
	for i, g := range all {
		if i > 0 && all[i-1].Process == g.Process {
			continue // it goes on
		}
		last := g.Process
		for j := i - 1; j >= 0 && all[j].Got > g.Called; j-- {
			if all[j].Process != g.Process && all[j].Process != last {
				turns[g.Process]++
			}
			last = all[j].Process
		}
		waits[g.Process]++
	}
	averages := map[int]float64{}
	for process, n := range waits {
		averages[process] = float64(turns[process]) / float64(n)
	}
	return averages
}

// overtakes counts, for each grant, the grants and the tenures that other processes got while it waited.
func overtakes(all []*history.Grant) (average float64, tenures, most int, longest time.Duration) {
	total := 0
	for i, g := range all {
		grants, turns, last := 0, 0, g.Process
		for j := i - 1; j >= 0 && all[j].Got > g.Called; j-- {
			if all[j].Process != g.Process {
				grants++
				if all[j].Process != last {
					turns++
				}
			}
			last = all[j].Process
		}
		total += grants
		most, tenures = max(most, grants), max(tenures, turns)
		longest = max(longest, time.Duration(g.Got-g.Called))
	}
	return float64(total) / float64(len(all)), tenures, most, longest
}

// Readers that come all the time, from two processes and overlapping, do not lock a writer out.
func TestFairness_WriterAmongReaders(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	var workers []*worker.Process
	var calls []*worker.Call
	for range 2 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Hammer, Kind: worker.Readers, DSN: dsn, Key: "read", Goroutines: 8,
			For: lab.Hang, Hold: 4 * time.Millisecond, MaxConns: 2,
		}))
	}
	writer := worker.Start(t)
	writer.Open("c", dsn, 0)
	control := testkit.Connect(t, dsn)
	var spans []int64
	for range 5 {
		testkit.Eventually(t, "both read", func() bool {
			return testkit.Value[int](t, control, "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"+
				" AND mode = 'ShareLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())") == 2
		})
		r := writer.Hold("c", "read/0")
		spans = append(spans, r.At-r.Called)
		require.True(t, writer.Release("read/0").OK())
	}
	for i, call := range calls {
		workers[i].Do(worker.Command{Do: worker.Stop})
		require.Positive(t, call.Wait().Counts["granted"])
	}
	lab.Report(t, "a writer among readers, who go on until it has had its turns", lab.NewSpread(spans), 5*time.Second)
	judge(t, append(workers, writer)...)
}

// Law 8 for lone goroutines: who releases a key and wants it again at once does not get it before a process that
// stood in the queue by then, at least not many times in a row.
func TestFairness_LoneGoroutines(t *testing.T) {
	t.Parallel()
	for _, hold := range []time.Duration{0, time.Millisecond} {
		dsn := lab.Database(t)
		a, b := worker.Start(t), worker.Start(t)
		var calls []*worker.Call
		for _, p := range []*worker.Process{a, b} {
			p.Open("c", dsn, 0)
			calls = append(calls, p.Begin(worker.Command{Do: worker.Relay, Client: "c", Key: "lone", Count: testkit.Brief(400, 100), Hold: hold}))
		}
		for _, call := range calls {
			call.Wait()
		}
		all := sortByGot(collect(t, a, b))
		average, _, most, longest := overtakes(all)
		testkit.Figure(t, "lone goroutines holding for %v: while one waited, the other got at the most %d grants, on average %.2f; longest wait %v",
			hold, most, average, longest)
		// A first wait opens the session that will wait; meanwhile the other may pass many times.
		lab.Report(t, "lone goroutines, longest wait", lab.Spread{longest}, 2*time.Second)
		require.Less(t, average, 5.0)
	}
}
