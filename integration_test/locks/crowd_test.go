package locks

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Laws 7 and 9, figure P7: 10,000 goroutines wait for 1,000 keys that another process holds, on four
// connections, with few statements and without a line in the server's log.
func TestCrowd(t *testing.T) {
	t.Parallel()
	const keys, each = 1000, 10
	watched := testkit.Brief(5*time.Second, 2*time.Second)
	server := lab.OwnServer(t, map[string]string{"log_lock_waits": "on", "deadlock_timeout": "1s", "max_locks_per_transaction": "256"})
	dsn := lab.DatabaseOn(t, server)
	control := testkit.Connect(t, dsn)
	holder, crowd := worker.Start(t), worker.Start(t)
	holder.Open("c", dsn, 0)
	for _, r := range holder.Do(worker.Command{Do: worker.AcquireAll, Client: "c", Key: "crowd", Count: keys}).Steps {
		require.True(t, r.OK(), r.Err)
	}
	crowd.Open("c", testkit.Named(t, dsn, "crowd"), 0)
	call := crowd.Begin(worker.Command{Do: worker.Crowd, Client: "c", Key: "crowd", Count: keys, Goroutines: each, Within: lab.Hang})
	testkit.Eventually(t, "all goroutines wait", func() bool {
		_, counts := crowd.History()
		return counts.Tried == keys*each
	})

	logged := logSize(t, server.LogFile())
	statements, most := testkit.Statements(t, control, "crowd", watched)
	perSecond := float64(statements) / watched.Seconds()
	testkit.Figure(t, "crowd: %d connections", most)
	require.LessOrEqual(t, most, 4, "connections")
	lab.RequireFew(t, perSecond)

	holder.Do(worker.Command{Do: worker.ReleaseAll, Key: "crowd", Count: keys, Pause: testkit.Brief(4*time.Millisecond, time.Millisecond)})
	call.Wait()
	requireNothingLogged(t, server, logged)
	lab.Report(t, "crowd: release elsewhere to grant", lab.NewSpread(passOn(t, holder, crowd)), 4*time.Second)
}

// passOn is, for each key, the time from the release by one process to the first grant in the other.
func passOn(t *testing.T, from, to *worker.Process) (spans []int64) {
	t.Helper()
	released, granted := map[string]int64{}, map[string]int64{}
	for _, g := range collect(t, from) {
		released[g.Key] = g.End
	}
	for _, g := range collect(t, to) {
		if first, ok := granted[g.Key]; !ok || g.Got < first {
			granted[g.Key] = g.Got
		}
	}
	require.Len(t, granted, len(released))
	for key, at := range granted {
		spans = append(spans, at-released[key])
	}
	return spans
}

// requireNothingLogged requires that a server wrote nothing into its log behind a place. Where the machine has no time for a process
// that waits, the server takes the process's turn from it after a second, which it logs, as it does when the process is frozen.
func requireNothingLogged(t *testing.T, server *pgserver.Server, from int64) {
	t.Helper()
	content, err := os.ReadFile(server.LogFile())
	require.NoError(t, err)
	for line := range strings.Lines(string(content[from:])) {
		if lab.Figures() || !strings.Contains(line, "terminating connection due to idle-session timeout") {
			require.Empty(t, strings.TrimSpace(line), "a line in the server's log")
		}
	}
}

func logSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}

// Figure P5: the hand-over between two processes against a bare pg_advisory_lock in the same run.
func TestRelay(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(300, 100)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	median := func(bare bool) time.Duration {
		a, b := worker.Start(t), worker.Start(t)
		key := "pgbaton.key('relay')"
		if bare {
			key = strconv.Itoa(worker.BareKey)
		}
		testkit.Exec(t, control, "SELECT pg_advisory_lock("+key+")") // until both wait: else one might be done before the other begins
		var calls []*worker.Call
		for i, p := range []*worker.Process{a, b} {
			name := fmt.Sprintf("relay-%v-%d", bare, i)
			p.Open("c", testkit.Named(t, dsn, name), 0)
			calls = append(calls, p.Begin(worker.Command{
				Do: worker.Relay, Client: "c", DSN: testkit.Named(t, dsn, name), Key: "relay", Count: rounds,
				Hold: 2 * time.Millisecond, Bare: bare,
			}))
			testkit.Eventually(t, "the process waits", func() bool { return testkit.Waiting(t, control, name) > 0 })
		}
		testkit.Exec(t, control, "SELECT pg_advisory_unlock("+key+")")
		for _, call := range calls {
			call.Wait()
		}
		s := lab.NewSpread(history.HandOvers(collect(t, a, b)))
		require.NotEmpty(t, s, "nobody waited for the other")
		testkit.Figure(t, "hand-over between processes, bare %v: %v", bare, s)
		return s.At(50)
	}
	bare, ours := median(true), median(false)
	ratio := float64(ours) / float64(bare)
	testkit.Figure(t, "P5: hand-over %v, bare %v, ratio %.2f (target 1.60)", ours, bare, ratio)
	// The race detector slows down one side only: this bound is for a hand-over that waits for a slice.
	if lab.Figures() {
		require.Less(t, ratio, 50.0, "far from the figure, whatever the machine")
	}
}
