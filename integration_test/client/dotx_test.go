package client

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// doTxOn runs DoTx or DoSQLTx on a database behind a config, with a function that both know.
type doTxOn func(ctx context.Context, opts *pgbaton.LockOpts, fn func(ctx context.Context, tx pgbaton.Tx) error) error

// eachDoTx returns the kinds of DoTx, over connections that cfg describes.
func eachDoTx(t *testing.T, client *pgbaton.Client, key pgbaton.Key, cfg *pgx.ConnConfig) map[string]doTxOn {
	t.Helper()
	poolCfg, err := pgxpool.ParseConfig(cfg.ConnString())
	require.NoError(t, err)
	poolCfg.ConnConfig = cfg.Copy()
	pool, err := pgxpool.NewWithConfig(t.Context(), poolCfg)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	db := stdlib.OpenDB(*cfg)
	t.Cleanup(func() { _ = db.Close() })
	return map[string]doTxOn{
		"DoTx": func(ctx context.Context, opts *pgbaton.LockOpts, fn func(context.Context, pgbaton.Tx) error) error {
			return client.DoTx(ctx, pool, key, opts, func(ctx context.Context, tx pgx.Tx, _ *pgbaton.Lock) error { return fn(ctx, tx) })
		},
		"DoSQLTx": func(ctx context.Context, opts *pgbaton.LockOpts, fn func(context.Context, pgbaton.Tx) error) error {
			return client.DoSQLTx(ctx, db, key, opts, func(ctx context.Context, tx *sql.Tx, _ *pgbaton.Lock) error {
				return fn(ctx, pgbaton.SQLTx(tx))
			})
		},
	}
}

// lateCommit makes a table whose transactions hang in their commit while somebody has the advisory lock 4711.
const lateCommit = `
CREATE TABLE late (n int);
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hang()`

// The commit's outcome is unknown, and the server is still at it: the next holder's transaction waits, and sees it.
func TestDoTx_CommitUnknown(t *testing.T) {
	t.Parallel()
	for name, level := range map[string]pgx.TxIsoLevel{"ReadCommitted": pgx.ReadCommitted, "Serializable": pgx.Serializable} {
		for _, kind := range []string{"DoTx", "DoSQLTx"} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				testCommitUnknown(t, kind, level)
			})
		}
	}
}

func testCommitUnknown(t *testing.T, kind string, level pgx.TxIsoLevel) {
	t.Helper()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	control := testkit.Connect(t, dsn)
	testkit.Exec(t, control, lateCommit)
	testkit.Exec(t, control, "SELECT pg_advisory_lock(4711)")
	proxy, through := testkit.Through(t, dsn)
	key := pgbaton.Name("late")
	opts := &pgbaton.LockOpts{Tx: pgbaton.TxOpts{Isolation: level}}

	patience, giveUp := context.WithCancel(ctx)
	done := make(chan error, 1)
	first := eachDoTx(t, a, key, through)[kind]
	go func() {
		done <- first(patience, opts, func(ctx context.Context, tx pgbaton.Tx) error {
			var n int
			return tx.QueryRow(ctx, "INSERT INTO late VALUES (1) RETURNING n").Scan(&n)
		})
	}()
	waiting(t, testkit.Connect(t, dsn))
	proxy.Refuse(true) // also requests to cancel
	giveUp()
	require.ErrorIs(t, soon(t, done), pgbaton.ErrCommitUnknown)

	direct, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	next := eachDoTx(t, b, key, direct)[kind]
	for _, wait := range []time.Duration{pgbaton.NoWait, 300 * time.Millisecond} {
		limited := *opts
		limited.Wait = wait
		err = testclient.EnoughTime(&limited.Wait, "not over yet", func() error {
			return next(ctx, &limited, func(context.Context, pgbaton.Tx) error { panic("the last one is not over") })
		})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.ErrorContains(t, err, "not over yet")
	}
	ended, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	err = next(ended, opts, func(context.Context, pgbaton.Tx) error { panic("the last one is not over") })
	cancel()
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	var rows int
	go func() {
		done <- next(ctx, opts, func(ctx context.Context, tx pgbaton.Tx) error {
			return tx.QueryRow(ctx, "SELECT count(*) FROM late").Scan(&rows)
		})
	}()
	testkit.WaitFor(t, testkit.Connect(t, dsn), "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 "+
		"AND pid <> pg_backend_pid() HAVING count(*) >= 2)")
	select {
	case err := <-done:
		require.Fail(t, "it did not wait", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	testkit.Exec(t, control, "SELECT pg_advisory_unlock(4711)")
	require.NoError(t, soon(t, done))
	require.Equal(t, 1, rows)
}

// A transaction that shares its lock shares the turn as well; an exclusive one does not.
func TestDoTx_Shared(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	a, b, dsn := pair(t)
	direct, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	key, shared := pgbaton.ID(5), &pgbaton.LockOpts{Shared: true}
	second := eachDoTx(t, b, key, direct)
	for kind, first := range eachDoTx(t, a, key, direct) {
		require.NoError(t, first(ctx, shared, func(ctx context.Context, _ pgbaton.Tx) error {
			err := second[kind](ctx, &pgbaton.LockOpts{Wait: pgbaton.NoWait}, func(context.Context, pgbaton.Tx) error { panic("shared") })
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			return second[kind](ctx, shared, func(context.Context, pgbaton.Tx) error { return nil })
		}))
	}
}

// Fence refuses a transaction whose lock is an old one.
func TestDoTx_Fence(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	a, b, dsn := pair(t)
	direct, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	key := pgbaton.Name("fenced")
	other := eachDoTx(t, b, key, direct)
	for kind, do := range eachDoTx(t, a, key, direct) {
		var seen int64
		require.NoError(t, do(ctx, &pgbaton.LockOpts{Fence: true}, func(ctx context.Context, tx pgbaton.Tx) error {
			return tx.QueryRow(ctx, "SELECT token FROM pgbaton.fence").Scan(&seen)
		}))
		require.Positive(t, seen)
		pool := testkit.Pool(t, dsn)
		_, err := pool.Exec(ctx, "UPDATE pgbaton.fence SET token = 9007199254740990")
		require.NoError(t, err)
		err = other[kind](ctx, &pgbaton.LockOpts{Fence: true}, func(context.Context, pgbaton.Tx) error { panic("stale") })
		require.ErrorIs(t, err, pgbaton.ErrStaleToken)
		_, err = pool.Exec(ctx, "DELETE FROM pgbaton.fence")
		require.NoError(t, err)
	}
}

// losing is a pool whose commits are followed by something before the caller hears of them.
type losing struct {
	*pgxpool.Pool

	after func()
}

func (l losing) BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error) {
	tx, err := l.Pool.BeginTx(ctx, opts)
	return losingTx{tx, l.after}, err
}

type losingTx struct {
	pgx.Tx

	after func()
}

func (t losingTx) Commit(ctx context.Context) error {
	err := t.Tx.Commit(ctx)
	t.after()
	return err
}

// A lock that is lost behind the commit is an error that says what has become of the transaction.
func TestDoTx_LostBehindTheCommit(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	admin := testkit.Connect(t, dsn)
	testkit.Exec(t, admin, "CREATE TABLE done (n int)")
	client := testclient.New(t, dsn, &pgbaton.Config{Name: "loser"})
	var lock *pgbaton.Lock
	pool := losing{testkit.Pool(t, dsn), func() {
		testkit.Exec(t, admin, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = 'pgbaton/loser' AND datname = current_database()`)
		<-lock.Done()
	}}
	err := client.DoTx(ctx, pool, pgbaton.Name("k"), nil, func(ctx context.Context, tx pgx.Tx, l *pgbaton.Lock) error {
		lock = l
		_, err := tx.Exec(ctx, "INSERT INTO done VALUES (1)")
		return err
	})
	require.ErrorIs(t, err, pgbaton.ErrLost)
	require.NotErrorIs(t, err, pgbaton.ErrCommitUnknown)
	require.ErrorContains(t, err, "is committed")
	require.Equal(t, int64(1), testkit.Value[int64](t, admin, "SELECT count(*) FROM done"))
}
