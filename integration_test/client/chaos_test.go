package client

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Connections that are cut at any moment while many goroutines acquire, give up and release leave nothing behind,
// and never more connections than agreed.
func TestClient_CutAtAnyMoment(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	proxy, through := testkit.Through(t, dsn)
	pool, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	var open atomic.Int64
	pool.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := through.DialFunc(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &openConn{Conn: conn, closed: func() { open.Add(-1) }}, nil
	}
	pool.ConnConfig.RuntimeParams["application_name"] = "chaos"
	unused, err := pgxpool.NewWithConfig(t.Context(), pool)
	require.NoError(t, err)
	defer unused.Close()
	const maxConns = 3
	var clients []*pgbaton.Client
	for range 2 {
		client, err := pgbaton.New(t.Context(), unused, &pgbaton.Config{TTL: 2 * time.Second, MaxConns: maxConns})
		require.NoError(t, err)
		clients = append(clients, client)
	}
	stop := time.Now().Add(testkit.Length(4 * time.Second))
	var group sync.WaitGroup
	for i := range 60 {
		group.Go(func() { acquireUntil(clients[i%2], stop) })
	}
	for time.Now().Before(stop) {
		time.Sleep(rand.N(300 * time.Millisecond)) //nolint:gosec // a test's
		require.LessOrEqual(t, open.Load(), int64(2*maxConns+2*maxConns), "with one cancel request for each")
		proxy.Cut()
	}
	group.Wait()
	for _, client := range clients {
		lock, err := client.Acquire(t.Context(), pgbaton.ID(1)) // it has recovered
		require.NoError(t, err)
		require.NoError(t, lock.Release(t.Context()))
		require.NoError(t, client.Close(t.Context()))
	}
	admin := testkit.Connect(t, dsn)
	require.Eventually(t, func() bool {
		return testkit.Value[int](t, admin, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chaos' AND datname = current_database()`) == 0
	}, testkit.Patience, 10*time.Millisecond, "sessions are left")
}

// openConn tells when it is closed.
type openConn struct {
	net.Conn

	once   sync.Once
	closed func()
}

func (c *openConn) Close() error {
	c.once.Do(c.closed)
	return c.Conn.Close()
}

func acquireUntil(client *pgbaton.Client, stop time.Time) {
	for time.Now().Before(stop) {
		key := pgbaton.ID(rand.Int64N(5))                                                       //nolint:gosec // a test's
		ctx, cancel := context.WithTimeout(context.Background(), rand.N(2000*time.Millisecond)) //nolint:gosec // a test's
		acquire := client.Acquire
		switch rand.IntN(4) { //nolint:gosec // a test's
		case 0:
			acquire = client.AcquireShared
		case 1:
			acquire = client.TryAcquire
		}
		lock, err := acquire(ctx, key)
		cancel()
		if err == nil {
			time.Sleep(rand.N(3 * time.Millisecond)) //nolint:gosec // a test's
			_ = lock.Release(context.Background())   // it may be lost
		}
	}
}
