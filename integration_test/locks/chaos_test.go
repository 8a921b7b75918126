package locks

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	chaosKeys = 4
	chaosLoad = 2 * time.Second
)

// chaos starts processes that do everything at random on a few keys.
func chaos(t *testing.T, dsn string, processes int, load time.Duration) ([]*worker.Process, []*worker.Call) {
	t.Helper()
	var workers []*worker.Process
	var calls []*worker.Call
	for range processes {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Hammer, Kind: worker.Chaos, DSN: dsn, Key: "chaos", Keys: chaosKeys,
			Clients: 2, Goroutines: 8, For: load, MaxConns: 3, Hold: 300 * time.Microsecond, Faults: true,
		}))
	}
	return workers, calls
}

// shoot ends or cancels a random session of the clients every few milliseconds, from when all are at work, and then
// lets them end. It returns how often it hit.
func shoot(t *testing.T, dsn, function string, pause time.Duration, workers []*worker.Process) (hits int) {
	t.Helper()
	control := testkit.Connect(t, dsn)
	testkit.Eventually(t, "all clients are open and at work", func() bool {
		return testkit.Value[int](t, control, `SELECT count(*) FROM pg_stat_activity
			WHERE application_name = 'chaos' AND datname = current_database() AND query ~ 'wait_for_turn|acquire_lease'`) >= 6
	})
	begun := time.Now()
	testkit.Eventually(t, "sessions are hit for a while", func() bool {
		time.Sleep(pause)
		tag, err := control.Exec(context.Background(), "SELECT "+function+`(pid) FROM pg_stat_activity
			WHERE application_name = 'chaos' AND datname = current_database() AND pid <> pg_backend_pid()
			ORDER BY random() LIMIT 1`)
		require.NoError(t, err)
		hits += int(tag.RowsAffected())
		return hits >= 10 && time.Since(begun) > chaosLoad
	})
	for _, p := range workers {
		p.Do(worker.Command{Do: worker.Stop})
	}
	return hits
}

// Histories of everything at once, without faults, with sessions that are ended, with statements that are
// cancelled, and with a process that is killed in the middle.
func TestChaos(t *testing.T) {
	t.Parallel()
	t.Run("calm", func(t *testing.T) {
		t.Parallel()
		workers, calls := chaos(t, lab.Database(t), 3, chaosLoad)
		for _, call := range calls {
			require.Zero(t, call.Wait().Counts["lost"])
		}
		overlaps := judge(t, workers...)
		require.Empty(t, overlaps)
	})
	t.Run("cancel", func(t *testing.T) {
		t.Parallel()
		dsn := lab.Database(t)
		workers, calls := chaos(t, testkit.Named(t, dsn, "chaos"), 3, lab.Hang)
		hits := shoot(t, dsn, "pg_cancel_backend", 3*time.Millisecond, workers)
		for _, call := range calls {
			require.Zero(t, call.Wait().Counts["lost"], "a cancelled statement costs no lock")
		}
		testkit.Figure(t, "statements cancelled: %d", hits)
		overlaps := judge(t, workers...)
		require.Empty(t, overlaps)
	})
	t.Run("terminate", func(t *testing.T) {
		t.Parallel()
		dsn := lab.Database(t)
		workers, calls := chaos(t, testkit.Named(t, dsn, "chaos"), 3, lab.Hang)
		hits := shoot(t, dsn, "pg_terminate_backend", 20*time.Millisecond, workers)
		lost := int64(0)
		for _, call := range calls {
			a := call.Wait()
			require.Positive(t, a.Counts["granted"])
			lost += a.Counts["lost"]
		}
		overlaps := judgeEnded(t, workers...)
		testkit.Figure(t, "sessions ended: %d, losses told: %d", hits, lost)
		lab.Report(t, "overlap after pg_terminate_backend", lab.NewSpread(overlaps), 250*time.Millisecond)
	})
	t.Run("kill", func(t *testing.T) {
		t.Parallel()
		workers, calls := chaos(t, lab.Database(t), 4, chaosLoad)
		for i, call := range calls {
			if i == 0 {
				// Any moment in the middle of its work will do.
				time.Sleep(chaosLoad / 2)
				workers[0].Kill()
				continue
			}
			require.Zero(t, call.Wait().Counts["lost"])
		}
		overlaps := judge(t, workers...)
		require.Empty(t, overlaps)
	})
}
