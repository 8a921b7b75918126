// Package rows runs the conformance suite for row locks, optimistic updates and transactions with lib/pq, and over
// every PostgreSQL that is named.
package rows

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/rowtest"
)

// servers are the servers to test on: every PostgreSQL major that can be had.
var servers []string

func TestMain(m *testing.M) {
	ctx := context.Background()
	all, err := pgserver.StartAll(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, server := range all {
		servers = append(servers, server.URL())
	}
	status := m.Run()
	for _, server := range all {
		if err := server.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(status)
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
	for _, server := range servers {
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
