package locks

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// resultsDir is where a failed check leaves what explains it.
func resultsDir(tb testing.TB) string {
	tb.Helper()
	dir, err := filepath.Abs("../results")
	require.NoError(tb, err)
	require.NoError(tb, os.MkdirAll(dir, 0o755)) //nolint:gosec // for everybody to read
	return dir
}

// judge checks the histories of processes: the model, exclusion and tokens. It returns what overlapped
// after losses.
func judge(tb testing.TB, processes ...*worker.Process) []int64 {
	tb.Helper()
	all := collect(tb, processes...)
	return verify(tb, all)
}

// judgeEnded is judge for processes whose sessions were ended by the server while they handed keys over.
func judgeEnded(tb testing.TB, processes ...*worker.Process) []int64 {
	tb.Helper()
	all := collect(tb, processes...)
	history.Doubt(all)
	return verify(tb, all)
}

func verify(tb testing.TB, all []*history.Grant) []int64 {
	tb.Helper()
	overlaps, err := history.Exclusion(all)
	require.NoError(tb, err)
	require.NoError(tb, history.Tokens(all))
	checked, err := history.Check(all, resultsDir(tb))
	require.NoError(tb, err)
	testkit.Figure(tb, "history: %d operations checked", checked)
	return overlaps
}

// collect reads the histories of processes.
func collect(tb testing.TB, processes ...*worker.Process) []*history.Grant {
	tb.Helper()
	var all []*history.Grant
	var total history.Counts
	for _, p := range processes {
		grants, counts := p.History()
		all = append(all, grants...)
		total.Add(counts)
	}
	testkit.Figure(tb, "history: %+v", total)
	return all
}

// Laws 1 and 2, for each operation: a counter that only exclusion keeps right is exact at the end, and each
// change was made with a greater token than the one before.
func TestHammer(t *testing.T) {
	t.Parallel()
	const processes = 4
	load := testkit.Brief(1500*time.Millisecond, 700*time.Millisecond)
	for _, c := range []struct {
		kind                      string
		clients, goroutines, keys int
	}{
		{worker.ByAcquire, 2, 16, 2},
		{worker.ByTry, 2, 4, 2},
		{worker.ByMix, 2, 16, 2},
		{worker.ByDo, 2, 16, 8},
		{worker.ByHandover, 2, 16, 1},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			control := testkit.Connect(t, dsn)
			lab.Counters(t, control, "hammer", c.keys)
			cmd := worker.Command{
				Do: worker.Hammer, Kind: c.kind, DSN: dsn, Key: "hammer", Keys: c.keys,
				Clients: c.clients, Goroutines: c.goroutines, For: load, MaxConns: 2,
			}
			if c.kind == worker.ByHandover {
				cmd.File = filepath.Join(t.TempDir(), "counter")
				require.NoError(t, worker.CreateCounter(cmd.File))
			}
			var calls []*worker.Call
			var workers []*worker.Process
			for range processes {
				p := worker.Start(t)
				workers = append(workers, p)
				calls = append(calls, p.Begin(cmd))
			}
			var granted, changed int64
			for _, call := range calls {
				a := call.Wait()
				require.Positive(t, a.Counts["granted"], "a process got nothing")
				granted += a.Counts["granted"]
				changed += a.Counts["changed"]
			}
			counted := testkit.Value[int64](t, control, "SELECT sum(value)::int8 FROM counter")
			if cmd.File != "" {
				var err error
				counted, err = worker.ReadCounter(cmd.File)
				require.NoError(t, err)
			}
			require.Equal(t, changed, counted, "lost updates")
			testkit.Figure(t, "hammer %s: %d grants, %d changes", c.kind, granted, changed)
			if c.kind != worker.ByDo { // which leaves no history of its own
				judge(t, workers...)
			}
		})
	}
}
