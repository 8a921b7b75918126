package poolers

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// idleFleet is a number of clients that hold locks and do nothing else.
type idleFleet struct {
	clients []*pgbaton.Client
	locks   []*pgbaton.Lock
}

// heldByEach is how many locks each client of a fleet holds.
const heldByEach = 10

func startFleet(t *testing.T, dsn string, engine pgbaton.Engine, clients int) *idleFleet {
	t.Helper()
	f := &idleFleet{clients: make([]*pgbaton.Client, clients), locks: make([]*pgbaton.Lock, clients*heldByEach)}
	t.Cleanup(func() {
		for _, client := range f.clients {
			if client != nil {
				_ = client.Close(context.Background()) // the test is over
			}
		}
	})
	var group sync.WaitGroup
	turns := make(chan struct{}, 4) // so many begin at once: a server that is slow to start its processes takes longer than a client waits
	for i := range clients {
		group.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			client, err := pgbaton.Open(t.Context(), dsn, &pgbaton.Config{Engine: engine, Name: "fleet " + strconv.Itoa(i)})
			if err != nil {
				t.Error(err)
				return
			}
			f.clients[i] = client
			for k := range heldByEach {
				lock, err := client.Acquire(t.Context(), pgbaton.Name(fmt.Sprintf("fleet/%d/%d", i, k)))
				if err != nil {
					t.Error(err)
					return
				}
				f.locks[i*heldByEach+k] = lock
			}
		})
	}
	group.Wait()
	require.False(t, t.Failed())
	return f
}

// lost is how many locks are no longer held.
func (f *idleFleet) lost() (lost int) {
	for _, lock := range f.locks {
		if lock.Err() != nil {
			lost++
		}
	}
	return lost
}

// TestFigures_Fleet is figure P12: what a thousand processes cost their server that hold ten locks each and do nothing. A process is a
// client, which is all that the server sees of it.
func TestFigures_Fleet(t *testing.T) {
	clients, settled, watched := 20, time.Second, 2*time.Second
	if lab.Figures() {
		// An idle session tells of its transactions within ten seconds.
		clients, settled, watched = 1000, 15*time.Second, 30*time.Second
	}
	for _, c := range []struct {
		name   string
		engine pgbaton.Engine
		pooled bool
	}{
		{"sessions", pgbaton.EngineSession, false},
		{"leases, direct", pgbaton.EngineLease, false},
		{"leases, 50 connections of PgBouncer", pgbaton.EngineLease, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := lab.OwnServer(t, map[string]string{"max_connections": strconv.Itoa(2*clients + 100), "max_locks_per_transaction": "64"})
			dsn := lab.DatabaseOn(t, server)
			through := testkit.Named(t, dsn, "fleet")
			if c.pooled {
				through = lab.PgBouncer(t, through, "transaction", "default_pool_size = 50", "max_client_conn = "+strconv.Itoa(2*clients+100))
			}
			f := startFleet(t, through, c.engine, clients)
			control := testkit.Connect(t, dsn)
			const count = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
			time.Sleep(settled)
			transactions, used := testkit.Value[int64](t, control, count), processorTime(t, server)
			time.Sleep(watched)
			used = processorTime(t, server) - used
			transactions = testkit.Value[int64](t, control, count) - transactions
			connections := testkit.Value[int](t, control,
				"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()")
			testkit.Figure(t, "P12: %s: %d clients with %d locks each: %d connections (target 1 for each), %.0f statements/s (target 250), "+
				"%.1f %% of a processor (target 5), %d locks lost (target 0)", c.name, clients, heldByEach, connections,
				float64(transactions)/watched.Seconds(), 100*used.Seconds()/watched.Seconds(), f.lost())
			if lab.Figures() {
				require.Zero(t, f.lost())
			}
		})
	}
}

// processorTime is how long a server's processes have run, as far as they are still there.
func processorTime(t *testing.T, server *pgserver.Server) (used time.Duration) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	const tick = 10 * time.Millisecond // of Linux, for programs
	for _, path := range stats {
		content, err := os.ReadFile(path) //nolint:gosec // of /proc
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := bytes.Cut(content, []byte(") ")) // what is before has the program's name
		fields := bytes.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		parent, _ := strconv.Atoi(string(fields[1]))
		if pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path))); pid != server.PID() && parent != server.PID() {
			continue
		}
		for _, field := range fields[11:13] { // as user and as system
			ticks, _ := strconv.Atoi(string(field))
			used += time.Duration(ticks) * tick
		}
	}
	return used
}
