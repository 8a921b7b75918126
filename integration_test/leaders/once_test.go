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
)

const replicas = 8

// Eight replicas with clocks that differ call Once at every scheduled time, and the server restarts now and then in
// between, also by a crash: in every window there is one run.
func TestOnce_Windows(t *testing.T) {
	const (
		windows = 6
		period  = 2 * time.Second
		window  = 1200 * time.Millisecond // a busy machine may delay a call by half a second
		skew    = 400 * time.Millisecond
	)
	server := lab.OwnServer(t, map[string]string{"wal_writer_delay": "10s"})
	dsn := lab.DatabaseOn(t, server)
	clients := openReplicas(t, dsn)
	var mu sync.Mutex
	runs := map[int]int{}
	for w := range windows {
		due := time.Now().Add(50 * time.Millisecond)
		var wg sync.WaitGroup
		for _, client := range clients {
			late := rand.N(skew) //nolint:gosec // its clock
			wg.Go(func() {
				time.Sleep(time.Until(due.Add(late)))
				err := client.Once(context.Background(), "job", window, func(context.Context, *pgbaton.Lock) error {
					mu.Lock()
					defer mu.Unlock()
					runs[w]++
					return nil
				})
				if err != nil && !errors.Is(err, pgbaton.ErrNotAcquired) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		require.Equal(t, 1, runs[w], "window %d", w)
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
		time.Sleep(time.Until(due.Add(period)))
	}
}

// A run is on disk before it begins: a crash of the server during the run does not forget it.
func TestOnce_Crash(t *testing.T) {
	const rounds = 4
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
	const (
		window = 20 * time.Millisecond
		load   = 3 * time.Second
	)
	clients := openReplicas(t, lab.Database(t))
	var mu sync.Mutex
	running, runs := 0, 0
	var last pgbaton.Token
	end := time.Now().Add(load)
	var wg sync.WaitGroup
	for _, client := range clients {
		wg.Go(func() {
			for time.Now().Before(end) {
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
	lab.Note(t, "runs of %v in windows of %v: %d in %v", 3*window, window, runs, load)
	require.Greater(t, runs, 10)
}

func openReplicas(t *testing.T, dsn string) (clients []*pgbaton.Client) {
	t.Helper()
	for range replicas {
		clients = append(clients, lab.Client(t, dsn, nil))
	}
	return clients
}

// persist repeats what fails because the server is away.
func persist(call func() error) (err error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		var notDue *pgbaton.NotDueError
		if err = call(); err == nil || errors.As(err, &notDue) {
			return err
		}
	}
	return err
}
