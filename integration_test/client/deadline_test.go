package client

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// throughProxy is a client whose connections all go through a proxy, and a key of its database that others hold.
func throughProxy(t *testing.T) (client *pgbaton.Client, proxy *testkit.Proxy, dsn string) {
	t.Helper()
	dsn = testkit.Migrated(t)
	client, proxy = proxied(t, dsn)
	return client, proxy, dsn
}

// proxied is such a client of a database that there is.
func proxied(t *testing.T, dsn string) (client *pgbaton.Client, proxy *testkit.Proxy) {
	t.Helper()
	proxy, through := testkit.Through(t, dsn)
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.ConnConfig = through
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	client, err = pgbaton.New(t.Context(), pool, &pgbaton.Config{TTL: time.Hour}) // nothing ends before it is over
	require.NoError(t, err)
	t.Cleanup(func() {
		proxy.Stall(false)
		require.NoError(t, client.Close(context.Background()))
	})
	return client, proxy
}

// punctual checks that a call returns when its context ends, and because of it: the network is silent until all calls
// have returned, and the TTL is an hour.
func punctual(t *testing.T, name string, call func(ctx context.Context) error) {
	t.Helper()
	const attempts = 3
	best := time.Hour
	for range attempts {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
		err := call(ctx)
		late := time.Since(deadline(ctx))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.Less(t, late, testkit.Patience, name)
		best = min(best, late)
	}
	testkit.Figure(t, "on a silent network %s returned %v after its context had ended, best of %d", name, best, attempts)
}

// The network is silent: every call with a context returns when that ends.
func TestSilence(t *testing.T) {
	t.Parallel()
	for name, during := range map[string]func(proxy *testkit.Proxy){
		"ConnectionsOpen": func(proxy *testkit.Proxy) { proxy.Stall(true) },
		"ConnectionsLost": func(proxy *testkit.Proxy) { proxy.Stall(true); proxy.Cut() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testSilence(t, during)
		})
	}
}

func testSilence(t *testing.T, during func(proxy *testkit.Proxy)) {
	t.Helper()
	client, proxy, dsn := throughProxy(t)
	ctx := testkit.Context(t)
	s, err := client.Semaphore(ctx, "s", 3)
	require.NoError(t, err)
	permit, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	lock, err := client.Acquire(ctx, pgbaton.Name("mine"))
	require.NoError(t, err)
	pool := testkit.Pool(t, dsn)
	during(proxy)
	brief, cancel := context.WithTimeout(ctx, 60*time.Millisecond)
	_, _ = s.TryAcquire(brief, 1) // the first to hear of a lost connection may be told of that instead
	cancel()

	key, other := pgbaton.Name("x"), pgbaton.Name("y")
	never := func(context.Context, *pgbaton.Lock) error { panic("not held") }
	for name, call := range map[string]func(ctx context.Context) error{
		"Acquire":          func(ctx context.Context) error { _, err := client.Acquire(ctx, key); return err },
		"TryAcquire":       func(ctx context.Context) error { _, err := client.TryAcquire(ctx, key); return err },
		"AcquireShared":    func(ctx context.Context) error { _, err := client.AcquireShared(ctx, key); return err },
		"TryAcquireShared": func(ctx context.Context) error { _, err := client.TryAcquireShared(ctx, key); return err },
		"AcquireAll":       func(ctx context.Context) error { _, err := client.AcquireAll(ctx, key, other); return err },
		"TryAcquireAll":    func(ctx context.Context) error { _, err := client.TryAcquireAll(ctx, key, other); return err },
		"Do":               func(ctx context.Context) error { return client.Do(ctx, key, never) },
		"DoAll": func(ctx context.Context) error {
			return client.DoAll(ctx, []pgbaton.Key{key, other}, nil, func(context.Context, *pgbaton.LockSet) error { panic("not held") })
		},
		"DoTx": func(ctx context.Context) error {
			return client.DoTx(ctx, pool, key, nil, func(context.Context, pgx.Tx, *pgbaton.Lock) error { panic("not held") })
		},
		"Once":      func(ctx context.Context) error { return client.Once(ctx, "job", time.Hour, never) },
		"LastRun":   func(ctx context.Context) error { _, err := client.LastRun(ctx, "job"); return err },
		"ForgetRun": func(ctx context.Context) error { return client.ForgetRun(ctx, "job") },
		"Lead": func(ctx context.Context) error {
			return client.Lead(ctx, "l", func(context.Context, *pgbaton.Lock) error { panic("not elected") })
		},
		"Leader":        func(ctx context.Context) error { _, err := client.Leader(ctx, "l"); return err },
		"RequestResign": func(ctx context.Context) error { return client.RequestResign(ctx, "l") },
		"Semaphore":     func(ctx context.Context) error { _, err := client.Semaphore(ctx, "t", 3); return err },
		"OpenSemaphore": func(ctx context.Context) error { _, err := client.Semaphore(ctx, "s", 0); return err },
		"PermitAcquire": func(ctx context.Context) error { _, err := s.Acquire(ctx, 1); return err },
		"PermitTry":     func(ctx context.Context) error { _, err := s.TryAcquire(ctx, 1); return err },
		"PermitDo": func(ctx context.Context) error {
			return s.Do(ctx, 1, nil, func(context.Context, *pgbaton.Permit) error { panic("not held") })
		},
		"Resize":    func(ctx context.Context) error { return s.Resize(ctx, 4) },
		"Available": func(ctx context.Context) error { _, err := testclient.Available(ctx, s); return err },
		"Capacity":  func(ctx context.Context) error { _, err := testclient.Capacity(ctx, s); return err },
		"Holders":   func(ctx context.Context) error { _, err := testclient.Holders(ctx, s); return err },
	} {
		punctual(t, name, call)
	}
	proxy.Stall(false)
	_ = lock.Release(ctx)
	_ = permit.Release(ctx)
}

// A run that holds its lock and waits for its record gives the lock back without waiting for the server.
func TestSilence_OnceBetweenLockAndRecord(t *testing.T) {
	t.Parallel()
	client, proxy, dsn := throughProxy(t)
	const job = "silent"
	runs(t, client, job, time.Millisecond)
	row, control := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	testkit.Exec(t, row, "BEGIN; SELECT FROM pgbaton.last_run FOR UPDATE")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- client.Once(ctx, job, time.Millisecond, func(context.Context, *pgbaton.Lock) error { panic("not recorded") })
	}()
	testkit.WaitFor(t, control, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint = pgbaton.key('silent') & 4294967295 AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
	proxy.Stall(true)
	began := time.Now()
	cancel()
	require.ErrorIs(t, soon(t, done), context.Canceled)
	testkit.Figure(t, "on a silent network Once between its lock and its record returned %v after its context had ended", time.Since(began))
	proxy.Stall(false)
	testkit.Exec(t, row, "ROLLBACK")
	testkit.WaitFor(t, control, `SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint = pgbaton.key('silent') & 4294967295
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
}
