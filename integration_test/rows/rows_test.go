// Package rows runs the conformance suite for row locks, optimistic updates and transactions with lib/pq, and over
// every PostgreSQL that is named.
package rows

import (
	"context"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/rowtest"
)

// servers are the servers to test on: PGBATON_TEST_DSNS, separated by commas, or else DATABASE_URL.
func servers(t *testing.T) []string {
	t.Helper()
	if list := os.Getenv("PGBATON_TEST_DSNS"); list != "" {
		return strings.Split(list, ",")
	}
	return []string{rowtest.DSN(t)}
}

var ways = map[string]func(t *testing.T, dsn string) rowtest.Way{
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
	"StdlibDB": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLDB)
	},
	"StdlibTx": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLTx)
	},
	"LibpqDB": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "postgres", plain(t, dsn), rowtest.WithSQLDB)
	},
	"LibpqTx": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "postgres", plain(t, dsn), rowtest.WithSQLTx)
	},
}

// plain says that the test servers have no TLS, which lib/pq would insist on.
func plain(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	query := u.Query()
	if !query.Has("sslmode") {
		query.Set("sslmode", "disable")
	}
	u.RawQuery = query.Encode()
	return u.String()
}

func TestRows(t *testing.T) {
	t.Parallel()
	for _, server := range servers(t) {
		t.Run(version(t, server), func(t *testing.T) {
			t.Parallel()
			for name, open := range ways {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					rowtest.Run(t, server, open)
				})
			}
		})
	}
}

// version names a server for the test's name.
func version(t *testing.T, server string) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, server)
	require.NoError(t, err)
	defer conn.Close(ctx)
	var version string
	require.NoError(t, conn.QueryRow(ctx, "SHOW server_version").Scan(&version))
	version, _, _ = strings.Cut(version, " ")
	return "PostgreSQL " + version
}
