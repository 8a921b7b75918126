package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// wellSaid checks the form of an error: one line, the library's name once and at the front, no words twice in a row, and
// what it was about.
func wellSaid(t *testing.T, err error, about ...string) {
	t.Helper()
	require.Error(t, err)
	text := err.Error()
	t.Log(text)
	require.NotContains(t, text, "\n")
	require.True(t, strings.HasPrefix(text, "pgbaton: "), text)
	require.Equal(t, 1, strings.Count(text, "pgbaton: "), text)
	parts := strings.Split(text, ": ")
	for i, part := range parts[1:] {
		require.NotEqual(t, parts[i], part, text)
	}
	for _, word := range about {
		require.Contains(t, text, word)
	}
	for _, inside := range []string{"link", "ledger", "desk", "waitroom"} {
		require.NotContains(t, text, inside)
	}
}

// Every kind of error says in one line what failed, on what, and why.
func TestErrors(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	key := pgbaton.Name("x")
	lock, err := b.Acquire(ctx, key)
	require.NoError(t, err)
	s, err := b.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	_, err = s.Acquire(ctx, 1)
	require.NoError(t, err)
	short := func() context.Context {
		soon, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		t.Cleanup(cancel)
		return soon
	}
	never := func(context.Context, *pgbaton.Lock) error { return nil }

	_, err = a.TryAcquire(ctx, key)
	wellSaid(t, err, `lock "x"`, "not acquired")
	_, err = a.Acquire(short(), key)
	wellSaid(t, err, `lock "x"`, "not acquired", "deadline exceeded")
	wait := 20 * time.Millisecond
	err = testclient.EnoughTime(&wait, `lock "x"`, func() error { // a set whose time is over at once names any of its keys
		soon, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		_, err := a.AcquireAll(soon, key, pgbaton.ID(1))
		return err
	})
	wellSaid(t, err, `lock "x"`, "not acquired", "deadline exceeded")
	_, err = a.AcquireAll(ctx)
	wellSaid(t, err, "no keys")
	for _, bad := range []pgbaton.Key{{}, pgbaton.Name(""), pgbaton.Name("\xff"), pgbaton.Name(strings.Repeat("x", 513))} {
		_, err = a.Acquire(ctx, bad)
		wellSaid(t, err)
		_, err = a.AcquireAll(ctx, bad)
		wellSaid(t, err)
		name := ""
		if bad != (pgbaton.Key{}) {
			name = strings.Trim(bad.String(), `"`)
		}
		if bad == pgbaton.Name("\xff") {
			name = "\xff"
		}
		wellSaid(t, a.Once(ctx, name, time.Hour, never))
		wellSaid(t, a.DoWith(ctx, bad, &pgbaton.LockOpts{Fence: true}, never))
	}
	wellSaid(t, a.Do(short(), key, never), `lock "x"`, "not acquired")
	wellSaid(t, a.DoWith(ctx, key, &pgbaton.LockOpts{Wait: time.Millisecond}, never), `lock "x"`, "the wait of 1ms is over")
	wellSaid(t, a.Once(ctx, "x", time.Hour, never), `"x"`, "somebody else is running it")
	wellSaid(t, a.Once(ctx, "x", -1, never), "the window is")
	wellSaid(t, a.Lead(short(), "l", func(ctx context.Context, _ *pgbaton.Lock) error { <-ctx.Done(); return nil }), `term of "l"`)
	_, err = a.Leader(ctx, "nobody")
	wellSaid(t, err, "not found", "nobody leads")
	_, err = a.Leader(ctx, "")
	wellSaid(t, err, "is empty")
	wellSaid(t, a.RequestResign(ctx, "l"), "nobody leads")
	_, err = a.Semaphore(ctx, "s", 2)
	wellSaid(t, err, `"s"`, "another capacity")
	_, err = a.Semaphore(ctx, "s", -1)
	wellSaid(t, err, "the capacity is -1")
	_, err = a.Semaphore(ctx, "none", 0)
	wellSaid(t, err, "not found")
	mine, err := a.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	_, err = mine.TryAcquire(ctx, 1)
	wellSaid(t, err, `permit of "s"`, "not acquired")
	_, err = mine.Acquire(short(), 1)
	wellSaid(t, err, `permit of "s"`, "deadline exceeded")
	_, err = mine.Acquire(ctx, 2)
	wellSaid(t, err, "more permits wanted")
	_, err = mine.Acquire(ctx, 0)
	wellSaid(t, err)

	tx, err := testkit.Connect(t, dsn).BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(t, err)
	_, err = pgbaton.AcquireTx(ctx, tx, key, &pgbaton.LockOpts{Wait: pgbaton.NoWait})
	wellSaid(t, err, "snapshot")
	_, err = pgbaton.AcquireTx(ctx, tx, key, &pgbaton.LockOpts{Wait: pgbaton.NoWait, StaleSnapshot: true})
	wellSaid(t, err, `lock "x"`, "not acquired")
	_, err = pgbaton.AcquireTx(ctx, tx, pgbaton.Key{}, &pgbaton.LockOpts{Wait: pgbaton.NoWait})
	wellSaid(t, err)
	wellSaid(t, pgbaton.Fence(ctx, tx, "", 1), "empty")
	wellSaid(t, pgbaton.Fence(ctx, tx, "r", 0), "token 0")

	require.NoError(t, lock.Release(ctx))
	wellSaid(t, lock.Err(), `lock "x"`, "not held")
	wellSaid(t, lock.Assert(ctx, tx), `lock "x"`, "not held")
}

// A loss says in one line how it came.
func TestErrors_Loss(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Named(t, testkit.Migrated(t), "loses")
	client, err := pgbaton.Open(ctx, dsn, nil)
	require.NoError(t, err)
	lock, err := client.Acquire(ctx, pgbaton.Name("x"))
	require.NoError(t, err)
	set, err := client.AcquireAll(ctx, pgbaton.ID(1), pgbaton.ID(2))
	require.NoError(t, err)
	s, err := client.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	permit, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	own := errors.New("own")
	err = client.Do(ctx, pgbaton.Name("y"), func(ctx context.Context, _ *pgbaton.Lock) error {
		testkit.Run(t, dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'loses' AND datname = current_database() AND pid <> pg_backend_pid()")
		<-ctx.Done()
		require.NotContains(t, context.Cause(ctx).Error(), "pgbaton: ")
		return own
	})
	require.ErrorIs(t, err, own)
	require.ErrorIs(t, err, pgbaton.ErrLost)
	require.True(t, strings.HasPrefix(err.Error(), "own; release lock \"y\": lost: terminated"), err.Error())
	soon(t, lock.Done())
	soon(t, permit.Done())
	for _, err := range []error{lock.Err(), lock.Release(ctx), set.Err(), set.Release(ctx), permit.Err(), permit.Release(ctx)} {
		wellSaid(t, err, "lost: terminated by an operator", "57P01")
	}

	lock, err = client.Acquire(ctx, pgbaton.Name("x"))
	require.NoError(t, err)
	require.NoError(t, client.Close(ctx))
	require.EqualError(t, lock.Err(), `pgbaton: lock "x": lost: client closed`)
	require.EqualError(t, lock.Release(ctx), `pgbaton: release lock "x": lost: client closed`)
	_, err = client.Acquire(ctx, pgbaton.Name("x"))
	require.EqualError(t, err, `pgbaton: acquire lock "x": client closed`)
	wellSaid(t, client.Lead(ctx, "l", nil), "client closed")
	_, err = client.Semaphore(ctx, "s", 1)
	wellSaid(t, err, "client closed")
	wellSaid(t, client.Once(ctx, "x", time.Hour, nil), "client closed")
}

// What New and Open say begins with the cause.
func TestErrors_Open(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	for dsn, about := range map[string][]string{
		testkit.Empty(t):                                {"pgbaton: schema does not serve this client: schema pgbaton does not exist", "(server "},
		"postgres://u@127.0.0.1:1/d":                    {"pgbaton: failed to connect to `user=u database=d`: 127.0.0.1:1"},
		"postgres://u@127.0.0.1:1,localhost:2/d":        {"127.0.0.1:1", ":2"},
		testkit.With(t, testkit.Server(t), "x", "y\nz"): {`"x"`},
	} {
		_, err := pgbaton.Open(ctx, dsn, nil)
		wellSaid(t, err, about...)
	}
	_, err := pgbaton.Open(ctx, testkit.Server(t), &pgbaton.Config{MaxConns: 1})
	wellSaid(t, err, "Config.MaxConns is 1")
	_, err = pgbaton.Open(ctx, testkit.Migrated(t), &pgbaton.Config{MaxHeld: 1 << 30})
	wellSaid(t, err, "Config.MaxHeld")
}

// The sentinels have their prefix by themselves.
func TestErrors_Sentinels(t *testing.T) {
	t.Parallel()
	require.EqualError(t, pgbaton.ErrNotAcquired, "pgbaton: not acquired")
	require.EqualError(t, pgbaton.ErrLost, "pgbaton: lost")
	require.EqualError(t, pgbaton.ErrClosed, "pgbaton: client closed")
}
