package contract

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/emulation"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// site is a database of one test's own on a ground.
type site struct {
	ground

	t       *testing.T
	ctx     context.Context // ends when the test hangs
	dsn     string          // as clients reach it
	control *pgx.Conn       // past all that stands in between
	direct  string          // the control's URL

	ops atomic.Int64 // of the library, so far
}

// run tests a law on every ground.
func run(t *testing.T, law int, holds func(*site)) {
	t.Helper()
	t.Parallel()
	for _, g := range grounds() {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			holds(newSite(t, g, law))
		})
	}
}

func newSite(t *testing.T, g ground, law int) *site {
	t.Helper()
	s := &site{ground: g, t: t, ctx: testkit.Context(t)}
	var proxy *emulation.Proxy
	t.Cleanup(func() { // the last thing
		c := cell{ops: s.ops.Load(), failed: t.Failed()}
		if proxy != nil {
			c.faults = proxy.Counts().Faults()
		}
		note(law, g.name, c)
	})
	if g.prepare == nil {
		s.dsn = testkit.Migrated(t)
		s.direct = s.dsn
	} else {
		s.dsn, s.direct = g.prepare(t)
	}
	s.control = testkit.Connect(t, s.direct)
	testkit.Exec(t, s.control, "SET default_transaction_isolation = 'read committed'")
	if g.through != nil {
		s.dsn = g.through(t, s.dsn)
	}
	if g.habits != (emulation.Habits{}) {
		var err error
		proxy, err = emulation.Start(s.dsn, g.habits)
		require.NoError(t, err)
		t.Cleanup(proxy.Close)
		s.dsn = proxy.URL()
	}
	return s
}

// open opens a client that is closed with the test. Its TTL is a minute where the config has none.
func (s *site) open(cfg pgbaton.Config) *pgbaton.Client {
	s.t.Helper()
	return s.openAt(s.dsn, cfg)
}

func (s *site) openAt(dsn string, cfg pgbaton.Config) *pgbaton.Client {
	s.t.Helper()
	cfg.Engine = s.engine
	cfg.TTL = cmp.Or(cfg.TTL, testkit.Patience)
	s.ops.Add(1)
	client := testclient.Open(s.t, dsn, &cfg)
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*testkit.Patience)
		defer cancel()
		s.close(ctx, client)
	})
	return client
}

// close closes a client. The answer to its last words may be cut off.
func (s *site) close(ctx context.Context, client *pgbaton.Client) {
	s.t.Helper()
	s.ops.Add(1)
	if err := client.Close(ctx); err != nil {
		require.True(s.t, s.sudden && ctx.Err() == nil, "%v", err)
		require.ErrorContains(s.t, err, "did not confirm")
	}
}

// clients opens several clients alike.
func (s *site) clients(n int) (clients []*pgbaton.Client) {
	s.t.Helper()
	for i := range n {
		clients = append(clients, s.open(pgbaton.Config{Name: fmt.Sprint("client ", i)}))
	}
	return clients
}

// worker starts a process with a client "c".
func (s *site) worker(ttl time.Duration) *worker.Process {
	s.t.Helper()
	s.ops.Add(1)
	p := worker.Start(s.t)
	p.Do(worker.Command{Do: worker.Open, Client: "c", DSN: s.dsn, TTL: ttl, Engine: string(s.engine)})
	return p
}

// closes has a process close its client, whose last words may be cut off.
func (s *site) closes(p *worker.Process) {
	s.t.Helper()
	a, ok := p.Begin(worker.Command{Do: worker.Close, Client: "c"}).Answer(testkit.Patience)
	require.True(s.t, ok, "it does not close")
	require.True(s.t, a.Fail == "" || s.sudden, a.Fail)
}

// patient returns a context that ends when something hangs.
func (s *site) patient() (context.Context, context.CancelFunc) {
	return context.WithTimeout(s.ctx, 2*testkit.Patience)
}

// acquire takes a key, which must succeed. On ground where connections are cut it is asked again.
func (s *site) acquire(client *pgbaton.Client, key pgbaton.Key) *pgbaton.Lock {
	s.t.Helper()
	lock, err := s.take(func(ctx context.Context) (*pgbaton.Lock, error) { return client.Acquire(ctx, key) })
	require.NoError(s.t, err)
	return lock
}

// take makes an acquire, again where its connection was cut.
func (s *site) take(acquire func(context.Context) (*pgbaton.Lock, error)) (*pgbaton.Lock, error) {
	ctx, cancel := s.patient()
	defer cancel()
	for {
		s.ops.Add(1)
		lock, err := acquire(ctx)
		if err == nil || ctx.Err() != nil || !s.cut(err) {
			return lock, err
		}
	}
}

// cut reports whether an error may be that of a connection that the ground has cut.
func (s *site) cut(err error) bool {
	return s.sudden && (errors.Is(err, pgbaton.ErrNotAcquired) || errors.Is(err, pgbaton.ErrLost))
}

// release gives back what must be held still.
func (s *site) release(held interface{ Release(context.Context) error }) {
	s.t.Helper()
	s.ops.Add(1)
	if err := held.Release(s.ctx); err != nil {
		require.True(s.t, s.cut(err), "%v", err)
	}
}

// refuses makes sure that a key is somebody else's.
func (s *site) refuses(client *pgbaton.Client, key pgbaton.Key) {
	s.t.Helper()
	s.ops.Add(1)
	_, err := client.TryAcquire(s.ctx, key)
	require.ErrorIs(s.t, err, pgbaton.ErrNotAcquired)
}

// pool opens the service's own pool, which is spared a pooler's and an emulation's whims.
func (s *site) pool() *pgxpool.Pool {
	s.t.Helper()
	return testkit.Pool(s.t, s.direct)
}

// network puts a bad network between a client and the ground.
func (s *site) network(cfg pgbaton.Config) (*pgbaton.Client, *testkit.Proxy) {
	s.t.Helper()
	network, through := testkit.Through(s.t, s.dsn)
	config, err := pgxpool.ParseConfig(s.dsn)
	require.NoError(s.t, err)
	config.ConnConfig = through
	pool, err := pgxpool.NewWithConfig(s.ctx, config)
	require.NoError(s.t, err)
	s.t.Cleanup(pool.Close)
	cfg.Engine = s.engine
	s.ops.Add(1)
	client, err := pgbaton.New(s.ctx, pool, &cfg)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { // on a network that is silent it would take TTL, and fail
		network.Stall(false)
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		_ = client.Close(ctx) // what it held may be lost
	})
	return client, network
}

// lose takes all locks from all clients behind their backs, as an operator or a failover does: sessions are ended, leases taken away.
func (s *site) lose() {
	s.t.Helper()
	if s.engine == pgbaton.EngineSession {
		testkit.Exec(s.t, s.control, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		return
	}
	testkit.Exec(s.t, s.control, "UPDATE pgbaton.lease SET holder = NULL, token = NULL, expires_at = NULL, length = NULL WHERE holder IS NOT NULL")
	testkit.Exec(s.t, s.control, "DELETE FROM pgbaton.lease_share")
}
