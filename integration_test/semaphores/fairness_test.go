package semaphores

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 8: three processes want more permits than there are, and each gets its part.
func TestFairness_Processes(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	s := create(t, dsn, "s", 2)
	var workers []*worker.Process
	var calls []*worker.Call
	for range 3 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Permits, DSN: dsn, Key: "s", N: 1, Goroutines: 6, For: testkit.Brief(3*time.Second, 1500*time.Millisecond), Hold: time.Millisecond,
		}))
	}
	var grants []int64
	total := int64(0)
	for _, call := range calls {
		n := call.Wait().Counts["granted"]
		grants = append(grants, n)
		total += n
	}
	testkit.Figure(t, "fairness: grants by process %v", grants)
	for _, n := range grants {
		require.Positive(t, n, "a process got no turn: %v", grants)
		if lab.Figures() {
			require.Greater(t, n, total/12, "a process hardly got a turn: %v", grants)
		}
	}
	lab.Report(t, "fairness: waits", waits(workers...), 3*time.Second)
	judge(t, fixed(2), workers...)
	requireWhole(t, s, 2)
}

// waits are the times from call to grant.
func waits(workers ...*worker.Process) lab.Spread {
	var spans []int64
	for _, p := range workers {
		grants, _ := p.History()
		for _, g := range grants {
			spans = append(spans, g.Got-g.Called)
		}
	}
	return lab.NewSpread(spans)
}

// Who wants all permits gets them, however many others come and go with one each, in its own process and in
// others.
func TestFairness_Weighted(t *testing.T) {
	t.Parallel()
	const capacity = 4
	rounds := testkit.Brief(5, 2)
	dsn := lab.Database(t)
	s := create(t, dsn, "s", capacity)
	var workers []*worker.Process
	var calls []*worker.Call
	for range 2 {
		p := worker.Start(t)
		p.Open("c", dsn, 0)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Permits, DSN: dsn, Key: "s", N: 1, Goroutines: 8, For: lab.Hang, Hold: 4 * time.Millisecond,
		}))
	}
	apart := worker.Start(t)
	apart.Open("c", dsn, 0)
	for what, p := range map[string]*worker.Process{"of a process that has small ones": workers[0], "of another process": apart} {
		var spans []int64
		for range rounds {
			r := hold(t, p, "s", capacity)
			spans = append(spans, r.At-r.Called)
			require.True(t, p.Release("s").OK())
			time.Sleep(50 * time.Millisecond) // the small ones come and go again
		}
		lab.Report(t, "all permits at once, "+what+", among small ones", lab.NewSpread(spans), 3*time.Second)
	}
	for i, call := range calls {
		workers[i].Do(worker.Command{Do: worker.Stop})
		require.Positive(t, call.Wait().Counts["granted"])
	}
	peak, _ := judge(t, fixed(capacity), append(workers, apart)...)
	require.Equal(t, capacity, peak)
	requireWhole(t, s, capacity)
}

// A release passes permits on at once: waiters in other processes do not sleep until the next poll.
func TestHandOver(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(20, 8)
	dsn := lab.Database(t)
	create(t, dsn, "s", 2)
	a, b := worker.Start(t), worker.Start(t)
	a.Open("c", dsn, 0)
	b.Open("c", dsn, 0)
	hold(t, a, "s", 2)
	var spans []int64
	from, to := a, b
	for range rounds {
		call := waitFor(t, to, "s", 2)
		released := history.Now()
		require.True(t, from.Release("s").OK())
		r := call.Wait().Result
		require.True(t, r.OK(), r.Err)
		spans = append(spans, r.At-released)
		from, to = to, from
	}
	require.True(t, from.Release("s").OK())
	lab.Report(t, "hand-over of permits between two processes", lab.NewSpread(spans), time.Second)
	judge(t, fixed(2), a, b)
}

// Laws 7 and 9: a thousand goroutines wait for one permit, on four connections and with few statements, and each
// gets it when it is its turn.
func TestCrowd(t *testing.T) {
	t.Parallel()
	const goroutines = 1000
	watched := testkit.Brief(3*time.Second, 2*time.Second)
	dsn := lab.Database(t)
	s := create(t, dsn, "s", 1)
	control := testkit.Connect(t, dsn)
	holder, crowd := worker.Start(t), worker.Start(t)
	holder.Open("c", dsn, 0)
	hold(t, holder, "s", 1)
	crowd.Open("c", dsn, 0) // from then on it has a history
	call := crowd.Begin(worker.Command{
		Do: worker.Permits, DSN: testkit.Named(t, dsn, "crowd"), Key: "s", N: 1, Goroutines: goroutines, Count: goroutines,
	})
	testkit.Eventually(t, "all goroutines wait", func() bool {
		_, counts := crowd.History()
		return counts.Tried == goroutines
	})
	statements, most := testkit.Statements(t, control, "crowd", watched)
	perSecond := float64(statements) / watched.Seconds()
	testkit.Figure(t, "crowd: %d connections", most)
	require.LessOrEqual(t, most, 4, "connections")
	lab.RequireFew(t, perSecond)
	require.True(t, holder.Release("s").OK())
	require.EqualValues(t, goroutines, call.Wait().Counts["granted"])
	judge(t, fixed(1), holder, crowd)
	requireWhole(t, s, 1)
}
