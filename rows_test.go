package pgbaton_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/rowtest"
)

func TestRowsOverPgxPool(t *testing.T) {
	t.Parallel()
	rowtest.Run(t, rowtest.DSN(t), func(t testing.TB, dsn string) rowtest.Way {
		return rowtest.PgxWay(t, dsn, func(_ testing.TB, pool *pgxpool.Pool, f func(pgbaton.Querier)) { f(pool) })
	})
}

func TestRowsOverPgxConn(t *testing.T) {
	t.Parallel()
	rowtest.Run(t, rowtest.DSN(t), func(t testing.TB, dsn string) rowtest.Way {
		way := rowtest.PgxWay(t, dsn, func(t testing.TB, pool *pgxpool.Pool, f func(pgbaton.Querier)) {
			rowtest.WithConn(t, pool, func(conn *pgx.Conn) { f(conn) })
		})
		return way
	})
}

func TestRowsOverPgxTx(t *testing.T) {
	t.Parallel()
	rowtest.Run(t, rowtest.DSN(t), func(t testing.TB, dsn string) rowtest.Way {
		return rowtest.PgxWay(t, dsn, func(t testing.TB, pool *pgxpool.Pool, f func(pgbaton.Querier)) {
			require.NoError(t, pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
				f(tx)
				return nil
			}))
		})
	})
}

func TestRowsOverSQLDB(t *testing.T) {
	t.Parallel()
	rowtest.Run(t, rowtest.DSN(t), func(t testing.TB, dsn string) rowtest.Way {
		return rowtest.SQLWay(t, "pgx", dsn, func(_ testing.TB, db *sql.DB, f func(pgbaton.Querier)) { f(pgbaton.SQLDB(db)) })
	})
}

func TestRowsOverSQLTx(t *testing.T) {
	t.Parallel()
	rowtest.Run(t, rowtest.DSN(t), func(t testing.TB, dsn string) rowtest.Way {
		return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLTx)
	})
}
