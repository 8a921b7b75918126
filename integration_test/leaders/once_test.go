package leaders

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

const replicas = 8

// Eight replicas with clocks that differ call Once at every scheduled time, and the server restarts now and then in
// between, also by a crash: there is a run at each of them, and no two are within one window.
func TestOnce_Windows(t *testing.T) {
	t.Parallel()
	const (
		window = 800 * time.Millisecond
		skew   = 200 * time.Millisecond
	)
	windows := testkit.Brief(6, 3)
	server := lab.OwnServer(t, map[string]string{"wal_writer_delay": "10s"})
	dsn := lab.DatabaseOn(t, server)
	clients := openReplicas(t, dsn)
	var mu sync.Mutex
	var records []time.Time
	for w := range windows {
		before := len(records)
		due := time.Now().Add(50 * time.Millisecond)
		var wg sync.WaitGroup
		for _, client := range clients {
			late := rand.N(skew) //nolint:gosec // its clock
			wg.Go(func() {
				time.Sleep(time.Until(due.Add(late)))
				err := client.Once(context.Background(), "job", window, func(ctx context.Context, _ *pgbaton.Lock) error {
					mu.Lock()
					defer mu.Unlock()
					last, err := client.LastRun(ctx, "job")
					records = append(records, last.Began)
					return err
				})
				if err != nil && !errors.Is(err, pgbaton.ErrNotAcquired) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Greater(t, len(records), before, "nobody ran, and the last run was a window ago")
		switch w % 3 {
		case 1:
			require.NoError(t, server.Restart(context.Background(), "fast"))
		case 2:
			require.NoError(t, server.Restart(context.Background(), "immediate"))
		}
		for _, client := range clients { // all are back before the next window
			require.NoError(t, persist(func() error {
				return client.Once(context.Background(), fmt.Sprint("of ", w), time.Nanosecond,
					func(context.Context, *pgbaton.Lock) error { return nil })
			}))
		}
		time.Sleep(window + 50*time.Millisecond) // whoever ran has begun before
	}
	// A machine that has stopped a replica for as long has let it come into the next window.
	for i := 1; i < len(records); i++ {
		require.GreaterOrEqual(t, records[i].Sub(records[i-1]), window, "two runs in one window")
	}
}

// A run is on disk before it begins: a crash of the server during the run does not forget it.
func TestOnce_Crash(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(4, 2)
	server := lab.OwnServer(t, map[string]string{"wal_writer_delay": "10s"})
	dsn := lab.DatabaseOn(t, server)
	clients := openReplicas(t, dsn)
	for round := range rounds {
		key := fmt.Sprint("job/", round)
		ran := 0
		err := clients[round].Once(context.Background(), key, time.Hour, func(context.Context, *pgbaton.Lock) error {
			ran++
			return server.Restart(context.Background(), "immediate")
		})
		require.ErrorIs(t, err, pgbaton.ErrLost)
		require.Equal(t, 1, ran)
		for _, client := range clients {
			err := persist(func() error {
				return client.Once(context.Background(), key, time.Hour, func(context.Context, *pgbaton.Lock) error {
					ran++
					return nil
				})
			})
			var notDue *pgbaton.NotDueError
			require.ErrorAs(t, err, &notDue)
			require.False(t, notDue.Last.IsZero())
		}
		require.Equal(t, 1, ran)
	}
}

// A run that takes longer than the window does not overlap with the next one.
func TestOnce_LongRuns(t *testing.T) {
	t.Parallel()
	const window = 20 * time.Millisecond
	enough := testkit.Brief(30, 12)
	clients := openReplicas(t, lab.Database(t))
	var mu sync.Mutex
	running, runs := 0, 0
	var last pgbaton.Token
	more := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return runs < enough
	}
	begun, end := time.Now(), time.Now().Add(lab.Hang)
	var wg sync.WaitGroup
	for _, client := range clients {
		wg.Go(func() {
			for more() && time.Now().Before(end) {
				err := client.Once(context.Background(), "long", window, func(_ context.Context, lock *pgbaton.Lock) error {
					mu.Lock()
					if running++; running > 1 || lock.Token() <= last {
						t.Errorf("%d run at the same time, token %d after %d", running, lock.Token(), last)
					}
					last = lock.Token()
					mu.Unlock()
					time.Sleep(3 * window)
					mu.Lock()
					defer mu.Unlock()
					running--
					runs++
					return nil
				})
				if err != nil && !errors.Is(err, pgbaton.ErrNotAcquired) {
					t.Error(err)
				}
				time.Sleep(rand.N(window)) //nolint:gosec // no secret
			}
		})
	}
	wg.Wait()
	testkit.Figure(t, "runs of %v in windows of %v: %d in %v", 3*window, window, runs, time.Since(begun))
	require.GreaterOrEqual(t, runs, enough)
}

func openReplicas(t *testing.T, dsn string) (clients []*pgbaton.Client) {
	t.Helper()
	for range replicas {
		clients = append(clients, testclient.New(t, dsn, nil))
	}
	return clients
}

// persist repeats what fails because the server is away.
func persist(call func() error) (err error) {
	for end := time.Now().Add(lab.Hang); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var notDue *pgbaton.NotDueError
		if err = call(); err == nil || errors.As(err, &notDue) {
			return err
		}
	}
	return err
}
