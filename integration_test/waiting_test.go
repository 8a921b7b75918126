package integration_test

import (
	"bytes"
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// ownServer starts a server whose settings and log are the test's.
func ownServer(t *testing.T, opts ...pgserver.Option) (*pgserver.Server, string) {
	t.Helper()
	dirs := pgserver.BinDirs()
	require.NotEmpty(t, dirs, "this test needs PostgreSQL's server programs: install postgresql, or set PG_BINDIR")
	server, err := pgserver.StartBinaries(t.Context(), dirs[0], append(opts, pgserver.WithSetting("fsync", "off"))...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
	require.NoError(t, pgbaton.Migrate(t.Context(), server.URL()))
	return server, server.URL()
}

// Waiting, giving up and taking turns write nothing into the log of a server that logs lock waits.
func TestWaiting_WritesNothingIntoTheLog(t *testing.T) {
	t.Parallel()
	server, dsn := ownServer(t, pgserver.WithSetting("log_lock_waits", "on"),
		pgserver.WithSetting("log_min_messages", "notice"), pgserver.WithSetting("log_checkpoints", "off"))
	holder, waiter := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	var locks []*pgbaton.Lock
	for i := range 8 {
		lock, err := holder.Acquire(t.Context(), pgbaton.ID(int64(i)))
		require.NoError(t, err)
		locks = append(locks, lock)
	}
	before, err := os.ReadFile(server.LogFile())
	require.NoError(t, err)
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			key := pgbaton.ID(int64(i % 8))
			for n := range 10 { // give up
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(50+(n*37+i*11)%150)*time.Millisecond)
				_, failed := waiter.Acquire(ctx, key)
				cancel()
				if failed == nil {
					t.Error("it is held elsewhere")
				}
			}
			lock, failed := waiter.Acquire(context.Background(), key)
			if failed == nil {
				failed = lock.Release(context.Background())
			}
			if failed != nil {
				t.Error(failed)
			}
		})
	}
	time.Sleep(4 * time.Second) // longer than deadlock_timeout
	for _, lock := range locks {
		require.NoError(t, lock.Release(context.Background()))
	}
	group.Wait()
	after, err := os.ReadFile(server.LogFile())
	require.NoError(t, err)
	require.Empty(t, string(bytes.TrimPrefix(after, before)))
}
