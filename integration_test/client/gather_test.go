package client

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Sets and single locks of one client that has one session to wait in, among those of another client: all are served.
func TestAcquireAll_FewSessions(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	few, other := testclient.New(t, dsn, &pgbaton.Config{MaxConns: 2}), testclient.New(t, dsn, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	keys := keysOf("a", "b", "c", "d", "e")
	var wg sync.WaitGroup
	for _, client := range []*pgbaton.Client{few, other} {
		for i := range 6 {
			wg.Go(func() {
				for n := range 8 {
					set, err := client.AcquireAll(ctx, keys[(i+n)%5], keys[(i+2*n+1)%5], keys[(n*i+2)%5])
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Millisecond)
					if err := set.Release(ctx); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Go(func() {
				for range 8 {
					if err := client.Do(ctx, keys[i%5], func(context.Context, *pgbaton.Lock) error { return nil }); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	free(t, other, keys...)
}

// What waits for a set ends with its context, or with the client, and leaves nothing on the server.
func TestAcquireAll_EndsWhileItWaits(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]error{"context": context.Canceled, "client": pgbaton.ErrClosed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testkit.Context(t)
			dsn := testkit.Migrated(t)
			other, client := testclient.New(t, dsn, nil), testclient.New(t, testkit.Named(t, dsn, "gatherer"), nil)
			conn := testkit.Connect(t, dsn)
			low, high := pgbaton.ID(1), pgbaton.ID(2)
			taken, err := other.Acquire(ctx, high)
			require.NoError(t, err)
			locks := func() int {
				return testkit.Value[int](t, conn, `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
					WHERE application_name = 'gatherer' AND datname = current_database() AND locktype = 'advisory'`)
			}
			bounded, cancel := context.WithCancel(ctx)
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := client.AcquireAll(bounded, high, low)
				failed <- err
			}()
			require.Eventually(t, func() bool { return locks() == 4 }, testkit.Patience, time.Millisecond, "a key, two gates and a wait")
			if name == "context" {
				cancel()
			} else {
				require.NoError(t, client.Close(ctx))
			}
			require.ErrorIs(t, <-failed, end)
			require.Eventually(t, func() bool { return locks() == 0 }, testkit.Patience, time.Millisecond, "nothing is left")
			require.NoError(t, taken.Release(ctx))
			free(t, other, low, high)
		})
	}
}

// A set that waits, and somebody who holds the key that it waits for and wants one that it has gathered: one of them ends.
func TestAcquireAll_Deadlock(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	a, b, dsn := pair(t)
	low, high := pgbaton.ID(1), pgbaton.ID(2)
	outer, err := b.Acquire(ctx, high)
	require.NoError(t, err)
	sets, locks := make(chan error, 1), make(chan error, 1)
	go func() {
		set, err := a.AcquireAll(ctx, low, high)
		if err == nil {
			err = set.Release(ctx)
		}
		sets <- err
	}()
	waiting(t, testkit.Connect(t, dsn)) // for the second, with the first gathered
	go func() {
		lock, err := b.Acquire(outer.Context(), low)
		if err == nil {
			err = lock.Release(ctx)
		}
		_ = outer.Release(ctx)
		locks <- err
	}()
	one, two := <-locks, error(nil)
	if one == nil {
		two = <-sets
		require.ErrorIs(t, two, pgbaton.ErrDeadlock)
		return
	}
	require.ErrorIs(t, one, pgbaton.ErrDeadlock)
	require.NoError(t, <-sets)
}

// A set whose turn it is comes before those of its process who wait for one of its keys by themselves.
func TestAcquireAll_AmongWaitersOfItsProcess(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	a, b, _ := pair(t)
	keys := keysOf("x", "y", "z")
	held, err := b.AcquireAll(ctx, keys...)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 5 {
		for _, key := range keys {
			wg.Go(func() {
				lock, err := a.Acquire(ctx, key)
				if err != nil {
					t.Error(err)
					return
				}
				if err := lock.Release(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			set, err := a.AcquireAll(ctx, keys...)
			if err != nil {
				t.Error(err)
				return
			}
			if err := set.Release(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, held.Release(ctx))
	wg.Wait()
	free(t, b, keys...)
}

// slowConn is a connection with a long way: what is written arrives late, and so does what is read.
type slowConn struct {
	net.Conn

	out     chan delayed
	delay   time.Duration
	closing sync.Once
}

type delayed struct {
	at   time.Time
	data []byte
}

func newSlowConn(conn net.Conn, delay time.Duration) *slowConn {
	c := &slowConn{Conn: conn, out: make(chan delayed, 10000), delay: delay}
	go func() {
		for l := range c.out {
			time.Sleep(time.Until(l.at))
			if _, err := conn.Write(l.data); err != nil {
				return
			}
		}
	}()
	return c
}

// Write takes the whole delay of a round trip.
func (c *slowConn) Write(p []byte) (int, error) {
	defer func() { _ = recover() }() // it was closed
	c.out <- delayed{time.Now().Add(c.delay), append([]byte(nil), p...)}
	return len(p), nil
}

func (c *slowConn) Close() error {
	c.closing.Do(func() { close(c.out) })
	return c.Conn.Close()
}

// warnings are the lines of a log.
type warnings struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (w *warnings) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines.Write(p)
}

func (w *warnings) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines.String()
}

// On a slow network turns are used, and no session that waits is lost. One attempt of five shows it: the server ends a
// session that does not answer within a second, which on a busy machine and a slow network may be too short.
func TestSlowNetwork_TurnsAreUsed(t *testing.T) {
	t.Parallel()
	for _, roundTrip := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond} {
		t.Run(roundTrip.String(), func(t *testing.T) {
			t.Parallel()
			lost := "WARN"
			for attempts := 0; strings.Contains(lost, "WARN"); attempts++ {
				require.Less(t, attempts, 5, lost)
				lost = slowTurns(t, roundTrip)
			}
		})
	}
}

// slowTurns hands a lock, a set and a permit over to a client on a slow network, and returns what that has logged.
func slowTurns(t *testing.T, roundTrip time.Duration) string {
	t.Helper()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	cfg, err := pgxpool.ParseConfig(testkit.Named(t, dsn, "slow"))
	require.NoError(t, err)
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newSlowConn(conn, roundTrip), nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	require.NoError(t, err)
	defer pool.Close()
	log := &warnings{}
	slow, err := pgbaton.New(ctx, pool, &pgbaton.Config{TTL: time.Minute, Logger: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	defer slow.Close(ctx)
	other := testclient.New(t, dsn, nil)
	sem, err := other.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	slowSem, err := slow.Semaphore(ctx, "s", 0)
	require.NoError(t, err)
	conn := testkit.Connect(t, dsn)
	stands := func() { // a session of the slow client stands in the server's queue
		testkit.WaitFor(t, conn, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'slow' AND datname = current_database() AND query ~ 'wait_for_turn')")
	}
	handOver(ctx, t, "lock", stands,
		func(c context.Context) (releaser, error) { return other.Acquire(c, pgbaton.Name("k")) },
		func(c context.Context) (releaser, error) { return slow.Acquire(c, pgbaton.Name("k")) })
	handOver(ctx, t, "set", stands,
		func(c context.Context) (releaser, error) { return other.Acquire(c, pgbaton.Name("2")) },
		func(c context.Context) (releaser, error) { return slow.AcquireAll(c, keysOf("1", "2", "3")...) })
	handOver(ctx, t, "permit", stands,
		func(c context.Context) (releaser, error) { return sem.Acquire(c, 1) },
		func(c context.Context) (releaser, error) { return slowSem.Acquire(c, 1) })
	return log.String()
}

type releaser interface {
	Release(ctx context.Context) error
}

// handOver has one wait while another holds.
func handOver(ctx context.Context, t *testing.T, what string, stands func(), hold, wait func(context.Context) (releaser, error)) {
	t.Helper()
	held, err := hold(ctx)
	require.NoError(t, err)
	got := make(chan error, 1)
	at := make(chan time.Time, 1)
	go func() {
		r, err := wait(ctx)
		at <- time.Now()
		if err == nil {
			err = r.Release(ctx)
		}
		got <- err
	}()
	time.Sleep(time.Second) // the session of the wait before is closed by then
	stands()
	released := time.Now()
	require.NoError(t, held.Release(ctx))
	require.NoError(t, <-got)
	testkit.Figure(t, "on a slow network a %s was handed over in %v", what, (<-at).Sub(released))
}

// A process that has lost the session that holds its locks, and gets no other, does not keep the keys that it waits for from
// those who have one.
func TestAcquire_WithoutASession(t *testing.T) {
	t.Parallel()
	for name, acquire := range map[string]func(context.Context, *pgbaton.Client) (releaser, error){
		"Lock": func(ctx context.Context, c *pgbaton.Client) (releaser, error) { return c.Acquire(ctx, pgbaton.ID(2)) },
		"Set": func(ctx context.Context, c *pgbaton.Client) (releaser, error) {
			return c.AcquireAll(ctx, pgbaton.ID(1), pgbaton.ID(2), pgbaton.ID(3))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, end := context.WithTimeout(t.Context(), 2*testkit.Patience)
			defer end()
			dsn := testkit.Migrated(t)
			proxy, through := testkit.Through(t, testkit.Named(t, dsn, "first"))
			config, err := pgxpool.ParseConfig(testkit.Named(t, dsn, "first"))
			require.NoError(t, err)
			config.ConnConfig.DialFunc = through.DialFunc
			pool, err := pgxpool.NewWithConfig(ctx, config)
			require.NoError(t, err)
			defer pool.Close()
			first, err := pgbaton.New(ctx, pool, nil)
			require.NoError(t, err)
			others := []*pgbaton.Client{testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)}
			admin := testkit.Connect(t, dsn)
			held, err := acquire(ctx, others[1])
			require.NoError(t, err)
			wait, cancel := context.WithCancel(ctx)
			var waiting sync.WaitGroup
			waiting.Go(func() { _, _ = acquire(wait, first) })
			testkit.WaitFor(t, admin, `SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
				WHERE application_name = 'first' AND datname = current_database() AND locktype = 'advisory' AND NOT granted)`)
			proxy.Refuse(true) // what is open stays open
			testkit.Value[int64](t, admin, `SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity
				WHERE application_name = 'first' AND datname = current_database() AND query !~ 'wait_for_turn'`)
			got := make(chan releaser, 1)
			next := func(client *pgbaton.Client) {
				r, err := acquire(ctx, client)
				if err != nil {
					t.Error(err)
				}
				got <- r
			}
			for i := range 6 {
				go next(others[i%2])
				time.Sleep(100 * time.Millisecond)
				began := time.Now()
				require.NoError(t, held.Release(ctx))
				held = <-got
				require.NotNil(t, held)
				t.Logf("granted after %v", time.Since(began))
			}
			require.NoError(t, held.Release(ctx))
			cancel()
			waiting.Wait()
			require.NoError(t, first.Close(ctx))
		})
	}
}
