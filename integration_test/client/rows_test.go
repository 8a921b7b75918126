package client

import (
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/rowtest"
)

func TestRows(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T, dsn string) rowtest.Way{
		"PgxPool": func(t *testing.T, dsn string) rowtest.Way {
			t.Helper()
			return rowtest.PgxWay(t, dsn, rowtest.WithPool)
		},
		"PgxConn": func(t *testing.T, dsn string) rowtest.Way {
			t.Helper()
			return rowtest.PgxWay(t, dsn, rowtest.WithConn)
		},
		"PgxTx": func(t *testing.T, dsn string) rowtest.Way {
			t.Helper()
			return rowtest.PgxWay(t, dsn, rowtest.WithPgxTx)
		},
		"SQLDB": func(t *testing.T, dsn string) rowtest.Way {
			t.Helper()
			return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLDB)
		},
		"SQLConn": func(t *testing.T, dsn string) rowtest.Way {
			t.Helper()
			return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLConn)
		},
		"SQLTx": func(t *testing.T, dsn string) rowtest.Way {
			t.Helper()
			return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLTx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rowtest.Run(t, testkit.Server(t), open)
		})
	}
}
