package portable

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

// Laws 1 and 2 between processes, for each operation: a counter that only exclusion keeps right is exact at the end, and each change was
// made with a greater token than the one before. The history is that of a lock.
func TestHammer(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs("../results")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(dir, 0o755)) //nolint:gosec // for everybody to read
	for _, kind := range []string{worker.ByAcquire, worker.ByTry, worker.ByMix} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			dsn, admin := migrated(t, kind == worker.ByTry)
			control := testkit.Connect(t, admin)
			lab.Counters(t, control, "hammer", 2)
			testkit.Exec(t, control, "GRANT ALL ON counter TO PUBLIC")
			var workers []*worker.Process
			var calls []*worker.Call
			for range 2 {
				p := worker.Start(t)
				workers = append(workers, p)
				calls = append(calls, p.Begin(worker.Command{
					Do: worker.Hammer, Kind: kind, DSN: dsn, Key: "hammer", Keys: 2, Clients: 2, Goroutines: 8, MaxConns: 2,
					For: testkit.Brief(3*time.Second, time.Second),
				}))
			}
			var granted, changed int64
			for _, call := range calls {
				a := call.Wait()
				granted += a.Counts["granted"]
				changed += a.Counts["changed"]
			}
			require.Positive(t, granted)
			require.Equal(t, changed, testkit.Value[int64](t, control, "SELECT sum(value)::int8 FROM counter"), "lost updates")
			var all []*history.Grant
			for _, p := range workers {
				grants, _ := p.History()
				all = append(all, grants...)
			}
			_, err := history.Exclusion(all)
			require.NoError(t, err)
			require.NoError(t, history.Tokens(all))
			checked, err := history.Check(all, dir)
			require.NoError(t, err)
			testkit.Figure(t, "portable, %s: %d changes, %d operations checked", kind, changed, checked)
		})
	}
}
