// Package rows runs the conformance suite for row locks, optimistic updates and transactions with lib/pq, and over
// every PostgreSQL that is named.
package rows

import (
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/rowtest"
)

func TestMain(m *testing.M) { os.Exit(lab.Run{M: m}.Run()) }

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
	"StdlibConn": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLConn)
	},
	"StdlibTx": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "pgx", dsn, rowtest.WithSQLTx)
	},
	"LibpqDB": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "postgres", plain(t, dsn), rowtest.WithSQLDB)
	},
	"LibpqConn": func(t *testing.T, dsn string) rowtest.Way {
		t.Helper()
		return rowtest.SQLWay(t, "postgres", plain(t, dsn), rowtest.WithSQLConn)
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
	if u.Query().Has("sslmode") {
		return dsn
	}
	return testkit.With(t, dsn, "sslmode", "disable")
}

func TestRows(t *testing.T) {
	t.Parallel()
	servers := lab.Servers(t)
	for i, server := range servers {
		t.Run(version(t, server.URL()), func(t *testing.T) {
			t.Parallel()
			for j, name := range slices.Sorted(maps.Keys(ways)) {
				if outer := i == 0 || i == len(servers)-1; j%len(servers) != i && (testing.Short() || !outer) {
					continue // each way on one of them; at full length also on the oldest and the newest
				}
				open := ways[name]
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					rowtest.Run(t, server.URL(), open)
				})
			}
		})
	}
}

// modes are pgx's ways to send a statement, but for the default, which all ways above use.
var modes = []string{"cache_describe", "describe_exec", "exec", "simple_protocol"}

// TestRows_ExecModes runs the suite in each mode, over a pool and over database/sql.
func TestRows_ExecModes(t *testing.T) {
	t.Parallel()
	server := lab.Server(t).URL()
	for i, mode := range modes {
		both := []string{"PgxPool", "StdlibDB"}
		for _, name := range testkit.Brief(both, both[i%2:][:1]) {
			t.Run(mode+"/"+name, func(t *testing.T) {
				t.Parallel()
				rowtest.Run(t, server, func(t *testing.T, dsn string) rowtest.Way {
					t.Helper()
					return ways[name](t, testkit.With(t, dsn, "default_query_exec_mode", mode))
				})
			})
		}
	}
}

// version names a server for the test's name.
func version(t *testing.T, server string) string {
	t.Helper()
	version := testkit.Value[string](t, testkit.Connect(t, server), "SHOW server_version")
	version, _, _ = strings.Cut(version, " ")
	return "PostgreSQL " + version
}
