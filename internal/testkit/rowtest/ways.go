package rowtest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// PgxWay is a way by pgx; with makes the handle under test.
func PgxWay(t *testing.T, dsn string, with func(t *testing.T, pool *pgxpool.Pool, f func(pgbaton.Querier))) Way {
	t.Helper()
	pool := newPool(t, dsn)
	return Way{
		With: func(t *testing.T, f func(pgbaton.Querier)) { t.Helper(); with(t, pool, f) },
		Begin: func(t *testing.T) pgbaton.Tx {
			t.Helper()
			tx, err := pool.Begin(context.Background())
			require.NoError(t, err)
			return tx
		},
		InTx: func(ctx context.Context, opts *pgbaton.TxOpts, fn func(ctx context.Context, tx pgbaton.Tx) error) error {
			return pgbaton.InTx(ctx, pool, opts, func(ctx context.Context, tx pgx.Tx) error { return fn(ctx, tx) })
		},
	}
}

// newPool is a pool that parallel tests cannot exhaust: each takes several connections, one after the other.
func newPool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	config.MaxConns = 64
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// WithPool calls f with the pool itself.
func WithPool(_ *testing.T, pool *pgxpool.Pool, f func(pgbaton.Querier)) { f(pool) }

// WithConn calls f with a connection of its own.
func WithConn(t *testing.T, pool *pgxpool.Pool, f func(pgbaton.Querier)) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig.Copy())
	require.NoError(t, err)
	defer conn.Close(ctx)
	f(conn)
}

// WithPgxTx calls f with a transaction and commits it.
func WithPgxTx(t *testing.T, pool *pgxpool.Pool, f func(pgbaton.Querier)) {
	t.Helper()
	require.NoError(t, pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
		f(tx)
		return nil
	}))
}

// SQLWay is a way by database/sql with the driver of the name given; with makes the handle under test.
func SQLWay(t *testing.T, driver, dsn string, with func(t *testing.T, db *sql.DB, f func(pgbaton.Querier))) Way {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	require.NoError(t, err)
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20) // a new connection costs more than all that a test does with it
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return Way{
		With: func(t *testing.T, f func(pgbaton.Querier)) { t.Helper(); with(t, db, f) },
		Begin: func(t *testing.T) pgbaton.Tx {
			t.Helper()
			tx, err := db.BeginTx(context.Background(), nil)
			require.NoError(t, err)
			return pgbaton.SQLTx(tx)
		},
		InTx: func(ctx context.Context, opts *pgbaton.TxOpts, fn func(ctx context.Context, tx pgbaton.Tx) error) error {
			return pgbaton.InSQLTx(ctx, db, opts, func(ctx context.Context, tx *sql.Tx) error { return fn(ctx, pgbaton.SQLTx(tx)) })
		},
	}
}

// WithSQLDB calls f with the database itself.
func WithSQLDB(_ *testing.T, db *sql.DB, f func(pgbaton.Querier)) { f(pgbaton.SQLDB(db)) }

// WithSQLConn calls f with a connection of the database.
func WithSQLConn(t *testing.T, db *sql.DB, f func(pgbaton.Querier)) {
	t.Helper()
	conn, err := db.Conn(context.Background())
	require.NoError(t, err)
	f(pgbaton.SQLDB(conn))
	require.NoError(t, conn.Close())
}

// WithSQLTx calls f with a transaction of database/sql and commits it.
func WithSQLTx(t *testing.T, db *sql.DB, f func(pgbaton.Querier)) {
	t.Helper()
	tx, err := db.BeginTx(context.Background(), nil)
	require.NoError(t, err)
	f(pgbaton.SQLTx(tx))
	require.NoError(t, tx.Commit())
}
