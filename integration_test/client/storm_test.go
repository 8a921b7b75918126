package client

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// The server ends the client's sessions again and again while every call is in use. A call that may wait goes on until its
// context ends; a try may say that it has not acquired; what is held may be lost. No other error comes back.
func TestStorm_ByKind(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	stormy := testkit.Named(t, dsn, "stormy")
	client, err := pgbaton.Open(t.Context(), stormy, nil)
	require.NoError(t, err)
	defer client.Close(context.Background())
	pool := testkit.Pool(t, dsn)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	defer db.Close()

	s, err := client.Semaphore(testkit.Context(t), "storm", 2)
	require.NoError(t, err)
	ctx, over := context.WithTimeout(t.Context(), testkit.Length(6*time.Second))
	defer over()
	nothing := func(context.Context, *pgbaton.Lock) error { return nil }
	lost, tried := pgbaton.ErrLost, pgbaton.ErrNotAcquired
	key := func(name string) pgbaton.Key { return pgbaton.Name("storm/" + name) }
	calls := map[string]struct {
		call    func() error
		allowed []error
	}{
		"Do":  {func() error { return client.Do(ctx, key("do"), nothing) }, []error{lost}},
		"Try": {func() error { return client.DoWith(ctx, key("try"), &pgbaton.LockOpts{Wait: pgbaton.NoWait}, nothing) }, []error{lost, tried}},
		"All": {func() error {
			return client.DoAll(ctx, []pgbaton.Key{key("1"), key("2")}, nil, func(context.Context, *pgbaton.LockSet) error { return nil })
		}, []error{lost}},
		"DoTx": {func() error {
			return client.DoTx(ctx, pool, key("tx"), nil, func(context.Context, pgx.Tx, *pgbaton.Lock) error { return nil })
		}, []error{lost}},
		"DoSQLTx": {func() error {
			return client.DoSQLTx(ctx, db, key("tx"), nil, func(context.Context, *sql.Tx, *pgbaton.Lock) error { return nil })
		}, []error{lost}},
		"Once":          {func() error { return client.Once(ctx, "once", time.Millisecond, nothing) }, []error{lost, tried}},
		"LastRun":       {func() error { _, err := client.LastRun(ctx, "once"); return err }, []error{pgbaton.ErrNotFound}},
		"Lead":          {func() error { return leadOnce(ctx, client) }, []error{lost}},
		"Leader":        {func() error { _, err := client.Leader(ctx, "storm"); return err }, []error{pgbaton.ErrNotFound}},
		"RequestResign": {func() error { return client.RequestResign(ctx, "storm") }, []error{pgbaton.ErrNotFound}},
		"Semaphore":     {func() error { _, err := client.Semaphore(ctx, "storm", 2); return err }, nil},
		"Available":     {func() error { _, err := testclient.Available(ctx, s); return err }, nil},
		"Holders":       {func() error { _, err := testclient.Holders(ctx, s); return err }, nil},
		"Permit":        {func() error { return s.Do(ctx, 1, nil, func(context.Context, *pgbaton.Permit) error { return nil }) }, []error{lost}},
		"TryPermit": {func() error {
			return s.Do(ctx, 1, &pgbaton.LockOpts{Wait: pgbaton.NoWait}, func(context.Context, *pgbaton.Permit) error { return nil })
		}, []error{lost, tried}},
	}
	var users sync.WaitGroup
	for name, c := range calls {
		users.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				err := c.call()
				if err == nil || ctx.Err() != nil {
					continue
				}
				if !matches(err, c.allowed) {
					t.Errorf("%s, call %d: %v", name, n, err)
					return
				}
			}
		})
	}
	control := testkit.Connect(t, dsn)
	for ctx.Err() == nil {
		testkit.Exec(t, control, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'stormy' AND datname = current_database()")
		time.Sleep(50 * time.Millisecond)
	}
	users.Wait()
}

var errServed = errors.New("served")

// leadOnce leads for one term.
func leadOnce(ctx context.Context, client *pgbaton.Client) error {
	err := client.Lead(ctx, "storm", func(context.Context, *pgbaton.Lock) error { return errServed })
	if errors.Is(err, errServed) && !errors.Is(err, pgbaton.ErrLost) {
		return nil
	}
	return err
}

func matches(err error, allowed []error) bool {
	for _, kind := range allowed {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}
