// Package semaphores tests semaphores between processes and under faults, as package locks does for locks.
package semaphores

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(lab.Run{M: m})
}

// loadVariable says how many acquires the hammer and the test of bloat make. The full run is a million, without
// the race detector.
const loadVariable = "PGBATON_SEMAPHORE_LOAD"

func loadSize(t *testing.T) int {
	t.Helper()
	text := os.Getenv(loadVariable)
	if text == "" {
		return testkit.Brief(6_000, 2_400)
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, loadVariable)
	return n
}

// create makes a semaphore, and a client that is closed with the test.
func create(t *testing.T, dsn, name string, capacity int) *pgbaton.Semaphore {
	t.Helper()
	s, err := testclient.New(t, dsn, nil).Semaphore(context.Background(), name, capacity)
	require.NoError(t, err)
	return s
}

// judge checks the histories of processes that used one semaphore, and returns the peak and what overlapped
// with lost permits.
func judge(t *testing.T, resizes []history.Resize, processes ...*worker.Process) (peak int, overlaps []int64) {
	t.Helper()
	var all []*history.Grant
	var total history.Counts
	for _, p := range processes {
		grants, counts := p.History()
		all = append(all, grants...)
		total.Add(counts)
	}
	peak, overlaps, err := history.Permits(all, resizes)
	require.NoError(t, err)
	require.NoError(t, history.Distinct(all))
	testkit.Figure(t, "history: %+v; at the most %d permits held at once", total, peak)
	lab.Report(t, "a claim is handed over within its process for", lab.NewSpread([]int64{history.Tenure(all)}), 1500*time.Millisecond)
	return peak, overlaps
}

func fixed(capacity int) []history.Resize { return []history.Resize{{Capacity: capacity}} }

// requireWhole makes sure that no permit was lost on the way: all of them can be had at once, before a TTL has passed.
func requireWhole(t *testing.T, s *pgbaton.Semaphore, capacity int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.Slow)
	defer cancel()
	started := time.Now()
	permit, err := s.Acquire(ctx, capacity)
	require.NoError(t, err, "all permits at once")
	testkit.Figure(t, "all %d permits at once after %v", capacity, time.Since(started))
	require.NoError(t, permit.Release(context.Background()))
	state, err := s.State(context.Background())
	require.NoError(t, err)
	require.Equal(t, capacity, state.Available)
}

// waitFor begins to wait for permits, and returns when it has had time to stand in line.
func waitFor(t *testing.T, p *worker.Process, name string, n int) *worker.Call {
	t.Helper()
	_, before := p.History()
	call := p.Begin(worker.Command{Do: worker.Acquire, Client: "c", Key: name, As: name, N: n})
	testkit.Eventually(t, "the waiter has called", func() bool {
		_, counts := p.History()
		return counts.Tried > before.Tried
	})
	time.Sleep(200 * time.Millisecond) // in the database nothing need be seen of a waiter
	select {
	case <-call.Settled():
		require.Fail(t, "it does not wait", "%+v", call.Wait())
	default:
	}
	return call
}

// hold acquires permits and keeps them under the semaphore's name.
func hold(t *testing.T, p *worker.Process, name string, n int) worker.Result {
	t.Helper()
	r := p.Do(worker.Command{Do: worker.Acquire, Client: "c", Key: name, As: name, N: n}).Result
	require.True(t, r.OK(), r.Err)
	return r
}
