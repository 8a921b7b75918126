package client

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What was never made gives an error, not a panic.
func TestZero(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	key := pgbaton.Name("x")
	neverLock := func(context.Context, *pgbaton.Lock) error { panic("not held") }

	for _, c := range []*pgbaton.Client{nil, {}} {
		for name, call := range map[string]func() error{
			"Acquire":          func() error { return ignoring(c.Acquire(ctx, key)) },
			"TryAcquire":       func() error { return ignoring(c.TryAcquire(ctx, key)) },
			"AcquireShared":    func() error { return ignoring(c.AcquireShared(ctx, key)) },
			"TryAcquireShared": func() error { return ignoring(c.TryAcquireShared(ctx, key)) },
			"AcquireAll":       func() error { return ignoring(c.AcquireAll(ctx, key)) },
			"TryAcquireAll":    func() error { return ignoring(c.TryAcquireAll(ctx, key)) },
			"Do":               func() error { return c.Do(ctx, key, neverLock) },
			"DoWith":           func() error { return c.DoWith(ctx, key, &pgbaton.LockOpts{Shared: true}, neverLock) },
			"DoAll": func() error {
				return c.DoAll(ctx, []pgbaton.Key{key}, nil, func(context.Context, *pgbaton.LockSet) error { panic("not held") })
			},
			"DoTx": func() error {
				return c.DoTx(ctx, (*pgxpool.Pool)(nil), key, nil, func(context.Context, pgx.Tx, *pgbaton.Lock) error { panic("not held") })
			},
			"DoSQLTx": func() error {
				return c.DoSQLTx(ctx, nil, key, nil, func(context.Context, *sql.Tx, *pgbaton.Lock) error { panic("not held") })
			},
			"Once":          func() error { return c.Once(ctx, "x", time.Second, neverLock) },
			"LastRun":       func() error { return ignoring(c.LastRun(ctx, "x")) },
			"ForgetRun":     func() error { return c.ForgetRun(ctx, "x") },
			"Lead":          func() error { return c.Lead(ctx, "x", neverLock) },
			"Leader":        func() error { return ignoring(c.Leader(ctx, "x")) },
			"RequestResign": func() error { return c.RequestResign(ctx, "x") },
			"Semaphore":     func() error { return ignoring(c.Semaphore(ctx, "x", 1)) },
			"Diagnose":      func() error { return ignoring(c.Diagnose(ctx)) },
			"Close":         func() error { return c.Close(ctx) },
		} {
			err := call()
			require.ErrorIs(t, err, pgbaton.ErrClosed, name)
			wellSaid(t, err, "it is nil or zero")
		}
	}
	for _, s := range []*pgbaton.Semaphore{nil, {}} {
		for name, call := range map[string]func() error{
			"Acquire":    func() error { return ignoring(s.Acquire(ctx, 1)) },
			"TryAcquire": func() error { return ignoring(s.TryAcquire(ctx, 2)) },
			"Do": func() error {
				return s.Do(ctx, 1, nil, func(context.Context, *pgbaton.Permit) error { panic("not held") })
			},
			"Resize": func() error { return s.Resize(ctx, 1) },
			"State":  func() error { return ignoring(s.State(ctx)) },
		} {
			err := call()
			require.ErrorIs(t, err, pgbaton.ErrNotFound, name)
			wellSaid(t, err, "it is nil or zero")
		}
	}
	var locks []grant
	for _, lock := range []*pgbaton.Lock{nil, {}} {
		require.Equal(t, pgbaton.Key{}, lock.Key())
		require.Zero(t, lock.Token())
		wellSaid(t, lock.Assert(ctx, nil), "not held")
		locks = append(locks, lock)
	}
	for _, permit := range []*pgbaton.Permit{nil, {}} {
		require.Zero(t, permit.Token())
		wellSaid(t, permit.Assert(ctx, nil), "not held")
		locks = append(locks, permit)
	}
	for _, set := range []*pgbaton.LockSet{nil, {}} {
		require.Nil(t, set.Lock(key))
		locks = append(locks, set)
	}
	for _, g := range locks {
		<-g.Done()
		<-g.Context().Done()
		require.ErrorIs(t, context.Cause(g.Context()), pgbaton.ErrNotHeld)
		for _, err := range []error{g.Err(), g.Release(ctx)} {
			require.ErrorIs(t, err, pgbaton.ErrNotHeld)
			wellSaid(t, err, "it is nil or zero")
		}
	}
}

// grant is what locks, sets and permits have in common.
type grant interface {
	Done() <-chan struct{}
	Context() context.Context
	Err() error
	Release(ctx context.Context) error
}

// Settings are refused by calls that have no use for them.
func TestLockOpts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := testclient.New(t, testkit.Migrated(t), nil)
	key := pgbaton.Name("x")
	neverLock := func(context.Context, *pgbaton.Lock) error { panic("not held") }
	for setting, opts := range map[string]*pgbaton.LockOpts{
		"Wait":          {Wait: time.Second},
		"Shared":        {Shared: true},
		"MaxHold":       {MaxHold: time.Second},
		"Fence":         {Fence: true},
		"Tx":            {Tx: pgbaton.TxOpts{ReadOnly: true}},
		"StaleSnapshot": {StaleSnapshot: true},
		"RetryFailed":   {RetryFailed: true},
		"Force":         {Force: true},
	} {
		for call, does := range map[string]struct {
			has  string
			call func() error
		}{
			"DoWith": {"Wait Shared MaxHold", func() error { return client.DoWith(ctx, key, opts, neverLock) }},
			"DoAll": {"Wait MaxHold", func() error {
				return client.DoAll(ctx, []pgbaton.Key{key}, opts, func(context.Context, *pgbaton.LockSet) error { panic("not held") })
			}},
			"DoTx": {"Wait Shared MaxHold Fence Tx", func() error {
				return client.DoTx(ctx, (*pgxpool.Pool)(nil), key, opts, func(context.Context, pgx.Tx, *pgbaton.Lock) error { panic("not held") })
			}},
			"OnceWith":  {"MaxHold RetryFailed Force", func() error { return client.OnceWith(ctx, "x", time.Second, opts, neverLock) }},
			"AcquireTx": {"Wait Shared StaleSnapshot", func() error { return ignoring(pgbaton.AcquireTx(ctx, nil, key, opts)) }},
			"Fence":     {"Shared", func() error { return pgbaton.Fence(ctx, nil, "r", 1, opts) }},
		} {
			if !slices.Contains(strings.Fields(does.has), setting) {
				wellSaid(t, does.call(), "LockOpts."+setting, call)
			}
		}
	}
	for _, opts := range []*pgbaton.LockOpts{{Wait: -2}, {MaxHold: -1}} {
		wellSaid(t, client.DoWith(ctx, key, opts, neverLock), "give a time")
	}
	wellSaid(t, pgbaton.Fence(ctx, nil, "r", 1, nil, nil), "the most is one")
	wellSaid(t, ignoring(client.Semaphore(ctx, "x", 1, nil, nil)), "the most is one")
}

// Diagnose tells what the client stands on.
func TestDiagnose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := testkit.Migrated(t)
	client := testclient.New(t, dsn, &pgbaton.Config{TTL: 7 * time.Second, MaxConns: 2, SessionPooler: true})
	found, err := client.Diagnose(ctx)
	require.NoError(t, err)
	conn := testkit.Connect(t, dsn)
	require.Equal(t, testkit.Value[string](t, conn, "SHOW server_version"), found.Server)
	require.Equal(t, testkit.Value[int](t, conn, "SELECT version FROM pgbaton.schema_version()"), found.Schema)
	require.Equal(t, "session", found.Engine)
	require.Equal(t, "session", found.Pooler, "as the Config says")
	require.NoError(t, found.NoSession)
	require.Equal(t, 7*time.Second, found.TTL)
	require.Equal(t, []int{1, 2}, []int{found.Conns, found.MaxConns})
	require.Contains(t, found.Protections, "idle_session_timeout")
	for setting := range found.Refused {
		require.Contains(t, found.Protections, setting)
	}
	require.NoError(t, client.Close(ctx))
	_, err = client.Diagnose(ctx)
	require.ErrorIs(t, err, pgbaton.ErrClosed)
}

// Settings of AcquireTx: a bound for the wait, which leaves the transaction usable, and the shared mode.
func TestAcquireTx_Opts(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client, _, dsn := pair(t)
	key := pgbaton.Name("x")
	lock, err := client.AcquireShared(ctx, key)
	require.NoError(t, err)
	tx, err := testkit.Connect(t, dsn).Begin(ctx)
	require.NoError(t, err)
	bounded := &pgbaton.LockOpts{Wait: 30 * time.Millisecond}
	_, err = pgbaton.AcquireTx(ctx, tx, key, bounded)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	wellSaid(t, err, `lock "x" for the transaction`, "the wait of 30ms is over")
	late, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	_, err = pgbaton.AcquireTx(late, tx, key, bounded)
	require.ErrorContains(t, err, "the wait of 30ms is over", "the shorter bound counts")
	_, err = pgbaton.AcquireTx(ctx, tx, key, &pgbaton.LockOpts{Wait: time.Minute, Shared: true})
	require.NoError(t, err)
	require.NoError(t, lock.Release(ctx))
	token, err := pgbaton.AcquireTx(ctx, tx, key, bounded)
	require.NoError(t, err)
	require.Greater(t, token, lock.Token())
	require.NoError(t, tx.Rollback(ctx))
}

// A run that lasts too long loses its lock, and has failed.
func TestOnceWith_MaxHold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	client := testclient.New(t, testkit.Migrated(t), nil)
	opts := &pgbaton.LockOpts{MaxHold: 100 * time.Millisecond, RetryFailed: true}
	for range 2 {
		err := client.OnceWith(ctx, "x", time.Hour, opts, func(ctx context.Context, lock *pgbaton.Lock) error {
			require.Equal(t, pgbaton.Name("x"), lock.Key())
			<-ctx.Done()
			return nil
		})
		require.ErrorIs(t, err, pgbaton.ErrLost)
		require.Equal(t, "held too long", pgbaton.LossReasonOf(err))
	}
}

// A service with a *sql.DB migrates by it.
func TestMigrate_SQLDB(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := testkit.Empty(t)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, pgbaton.Migrate(ctx, db))
	require.Zero(t, db.Stats().InUse)
	require.NoError(t, pgbaton.Migrate(ctx, dsn), "there is nothing left to do")
	client, err := pgbaton.New(ctx, db, nil)
	require.NoError(t, err)
	require.NoError(t, client.Close(ctx))
	strange := sql.OpenDB(connector{})
	defer strange.Close()
	wellSaid(t, pgbaton.Migrate(ctx, strange), "migrate", "strangeConn")
	wellSaid(t, pgbaton.Migrate(ctx, (*pgxpool.Pool)(nil)), "is nil")
}
