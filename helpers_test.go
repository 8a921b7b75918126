package pgbaton_test

import (
	"context"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// serverURL is the server that the tests may use as superuser.
func serverURL(tb testing.TB) string {
	tb.Helper()
	dsn := os.Getenv("DATABASE_URL")
	if dsn == "" {
		tb.Fatal("this test needs a PostgreSQL: set DATABASE_URL to one that it may use as superuser, or run: make test")
	}
	return dsn
}

// migratedDatabase is a database with the schema pgbaton.
func migratedDatabase(tb testing.TB) string {
	tb.Helper()
	dsn := dbtest.Empty(tb)
	pool, err := pgxpool.New(context.Background(), dsn)
	require.NoError(tb, err)
	defer pool.Close()
	require.NoError(tb, pgbaton.Migrate(context.Background(), pool))
	return dsn
}

// newClient opens a client, closed with the test.
func newClient(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	client, err := pgbaton.Open(context.Background(), dsn, cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(tb, client.Close(ctx))
	})
	return client
}

// named is the URL of a database for a session that can be told by its application_name.
func named(tb testing.TB, dsn, name string) string {
	tb.Helper()
	u, err := url.Parse(dsn)
	require.NoError(tb, err)
	query := u.Query()
	query.Set("application_name", name)
	u.RawQuery = query.Encode()
	return u.String()
}
