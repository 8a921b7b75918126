package locks

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// sweep is the ends of contexts at 0 to 300 µs after a moment.
type sweep struct {
	late []int64 // from the context's end to the error
	hits int     // contexts that ended first
}

// attempt acquires with a context that ends soon, by deadline or by cancel, and gives back what it got.
func (s *sweep) attempt(t *testing.T, client *pgbaton.Client, key pgbaton.Key, round int, grant func()) {
	t.Helper()
	after := time.Duration(round%301) * time.Microsecond
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := time.Now().Add(after)
	if round%2 == 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadline(ctx, ended)
		defer stop()
	} else {
		timer := time.AfterFunc(after, cancel)
		defer timer.Stop()
	}
	if grant != nil {
		go grant()
	}
	lock, err := client.Acquire(ctx, key)
	if err == nil {
		require.NoError(t, lock.Err())
		require.NoError(t, lock.Release(ctx))
		return
	}
	s.hits++
	s.late = append(s.late, max(0, int64(time.Since(ended))))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.True(t, errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded), err)
}

// Law 3: wherever in an acquire its context ends, nothing stays behind, no grant is lost, and the error comes
// soon.
func TestCancelSweep(t *testing.T) { //nolint:tparallel // its parts share a client
	t.Parallel()
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	client, err := pgbaton.Open(context.Background(), testkit.Named(t, dsn, "sweep"), &pgbaton.Config{Engine: testclient.Engine()})
	require.NoError(t, err)
	other := worker.Start(t)
	other.Open("c", dsn, 0)
	for _, c := range []struct {
		name   string
		rounds int
		run    func(t *testing.T, s *sweep, round int)
	}{
		{"free", testkit.Brief(1500, 600), func(t *testing.T, s *sweep, round int) {
			t.Helper()
			s.attempt(t, client, pgbaton.Name("free"), round, nil)
		}},
		{"held in the process", testkit.Brief(1500, 600), func(t *testing.T, s *sweep, round int) {
			t.Helper()
			lock, err := client.Acquire(context.Background(), pgbaton.Name("inside"))
			require.NoError(t, err)
			released := make(chan error, 1)
			s.attempt(t, client, pgbaton.Name("inside"), round, func() {
				time.Sleep(time.Duration(round%151) * time.Microsecond)
				released <- lock.Release(context.Background())
			})
			require.NoError(t, <-released)
		}},
		{"held by another process", testkit.Brief(300, 120), func(t *testing.T, s *sweep, round int) {
			t.Helper()
			key := fmt.Sprint("outside/", round%8)
			other.Hold("c", key)
			released := make(chan *worker.Call, 1)
			s.attempt(t, client, pgbaton.Name(key), round, func() {
				released <- other.Begin(worker.Command{Do: worker.Release, As: key})
			})
			require.True(t, (<-released).Wait().Result.OK())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s sweep
			for round := range c.rounds {
				c.run(t, &s, round)
			}
			require.NotZero(t, s.hits)
			require.Less(t, s.hits, c.rounds+1)
			testkit.Figure(t, "%d of %d contexts ended first", s.hits, c.rounds)
			lab.Report(t, "error after the context's end", lab.NewSpread(s.late), 50*time.Millisecond)
			testkit.Eventually(t, "pg_locks is empty", func() bool { return testkit.HeldBy(t, control, "sweep") == 0 })
		})
	}
	for i := range 8 { // the key is to be had
		lock, err := client.TryAcquire(context.Background(), pgbaton.Name(fmt.Sprint("outside/", i)))
		require.NoError(t, err)
		require.NoError(t, lock.Release(context.Background()))
	}
	require.NoError(t, client.Close(context.Background()))
}
