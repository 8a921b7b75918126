package semaphores

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// pooledTTL is short, since it is the wait for the permits of a killed process, and longer than a machine keeps a process from
// its renewals.
const pooledTTL = 8 * time.Second

// crowd starts processes that use a semaphore of three permits, through a pooler or not.
func crowd(t *testing.T, dsn string, processes int) (workers []*worker.Process, calls []*worker.Call) {
	t.Helper()
	for range processes {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Permits, DSN: dsn, TTL: pooledTTL, Key: "s", N: 2, Goroutines: 4,
			For: testkit.Brief(3*time.Second, 1500*time.Millisecond), Hold: 3 * time.Millisecond,
		}))
	}
	return workers, calls
}

// Behind a pooler in transaction mode semaphores work by lease alone: they exclude all the same, who waits is
// served, and a killed process's permits come back after TTL.
func TestPooler(t *testing.T) {
	t.Parallel()
	for name, direct := range map[string]int{"pooled": 0, "pooled and direct": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			through := lab.PgBouncer(t, dsn, "transaction")
			s := create(t, dsn, "s", 3)
			workers, calls := crowd(t, through, 3)
			others, more := crowd(t, dsn, direct)
			var grants []int64
			for _, call := range append(calls, more...) {
				a := call.Wait()
				require.Zero(t, a.Counts["lost"])
				require.Positive(t, a.Counts["granted"], "somebody was never served")
				grants = append(grants, a.Counts["granted"])
			}
			testkit.Figure(t, "%s: grants by process %v", name, grants)
			lab.Report(t, name+": waits through the pooler", waits(workers...), 3*time.Second)
			_, overlaps := judge(t, fixed(3), append(workers, others...)...)
			require.Empty(t, overlaps)
			requireWhole(t, s, 3)
		})
	}
}

func TestPooler_KilledHolder(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	through := lab.PgBouncer(t, dsn, "transaction")
	s := create(t, dsn, "s", 2)
	holder, pooled, direct := worker.Start(t), worker.Start(t), worker.Start(t)
	holder.Do(worker.Command{Do: worker.Open, Client: "c", DSN: through, TTL: pooledTTL})
	pooled.Do(worker.Command{Do: worker.Open, Client: "c", DSN: through, TTL: pooledTTL})
	direct.Open("c", dsn, pooledTTL)
	held := hold(t, holder, "s", 2)
	time.Sleep(pooledTTL * 3 / 2) // it is renewed
	kept := holder.Do(worker.Command{Do: worker.Err, As: "s"}).Result
	require.True(t, kept.OK(), kept.Err)
	calls := []*worker.Call{waitFor(t, pooled, "s", 1), waitFor(t, direct, "s", 1)}
	killed := holder.Kill()
	var spans []int64
	for _, call := range calls {
		r := call.Wait().Result
		require.True(t, r.OK(), r.Err)
		require.Greater(t, r.Token, held.Token)
		spans = append(spans, r.At-killed)
	}
	lab.Report(t, "SIGKILL of a holder behind a pooler to the grants", lab.NewSpread(spans), pooledTTL+time.Second)
	judge(t, fixed(2), holder, pooled, direct)
	require.True(t, pooled.Release("s").OK())
	require.True(t, direct.Release("s").OK())
	requireWhole(t, s, 2)
}
