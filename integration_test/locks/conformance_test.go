package locks

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// What must work on every PostgreSQL: exclusion, shared locks, hand-over, loss, a killed holder.
func TestConformance(t *testing.T) {
	t.Parallel()
	for _, server := range lab.Servers(t) {
		t.Run(fmt.Sprint("PostgreSQL ", server.Major()), func(t *testing.T) {
			t.Parallel()
			conform(t, server)
		})
	}
}

func conform(t *testing.T, server *pgserver.Server) {
	t.Helper()
	dsn := lab.DatabaseOn(t, server)
	control := testkit.Connect(t, dsn)
	a, b := worker.Start(t), worker.Start(t)
	a.Open("c", testkit.Named(t, dsn, "a"), 0)
	b.Open("c", testkit.Named(t, dsn, "b"), 0)

	held := a.Hold("c", "k")
	try := worker.Command{Do: worker.Acquire, Client: "c", Key: "k", As: "k", Try: true}
	require.True(t, a.Do(try).Result.NotAcquired, "locks are not re-entrant")
	require.True(t, b.Do(try).Result.NotAcquired)
	short := worker.Command{Do: worker.Acquire, Client: "c", Key: "k", As: "k", Within: 50 * time.Millisecond}
	r := b.Do(short).Result
	require.True(t, r.NotAcquired && r.TimedOut, r.Err)
	call := wait(t, control, b, "b", "k")
	require.True(t, a.Release("k").OK())
	next := call.Wait().Result
	require.True(t, next.OK(), next.Err)
	require.Greater(t, next.Token, held.Token)
	require.True(t, b.Release("k").OK())

	share := worker.Command{Do: worker.Acquire, Client: "c", Key: "s", As: "s", Shared: true, Try: true}
	require.True(t, a.Do(share).Result.OK())
	require.True(t, b.Do(share).Result.OK())
	require.True(t, b.Do(worker.Command{Do: worker.Acquire, Client: "c", Key: "s", Try: true}).Result.NotAcquired)
	require.True(t, a.Release("s").OK())
	require.True(t, b.Release("s").OK())

	a.Hold("c", "lost")
	watch := a.Begin(worker.Command{Do: worker.Watch, As: "lost"})
	require.Positive(t, terminate(t, control, "a"))
	require.True(t, watch.Wait().Result.Lost)
	require.True(t, a.Release("lost").Lost)
	a.Hold("c", "k")

	call = wait(t, control, b, "b", "k")
	killed := a.Kill()
	r = call.Wait().Result
	require.True(t, r.OK(), r.Err)
	lab.Report(t, "SIGKILL to the next grant", lab.NewSpread([]int64{r.At - killed}), 250*time.Millisecond)
	judge(t, a, b)
	hammerOn(t, dsn)
}

// hammerOn is a short hammer, with a history.
func hammerOn(t *testing.T, dsn string) {
	t.Helper()
	control := testkit.Connect(t, dsn)
	lab.Counters(t, control, "hammer", 1)
	var workers []*worker.Process
	var calls []*worker.Call
	for range 2 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Hammer, Kind: worker.ByMix, DSN: dsn, Key: "hammer", Goroutines: 8,
			For: 500 * time.Millisecond, MaxConns: 2,
		}))
	}
	changed := int64(0)
	for _, call := range calls {
		changed += call.Wait().Counts["changed"]
	}
	require.Equal(t, changed, testkit.Value[int64](t, control, "SELECT sum(value)::int8 FROM counter"))
	judge(t, workers...)
}
