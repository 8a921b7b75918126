package pgbaton_test

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
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

// database makes an empty database of the test's own and returns its URL.
func database(tb testing.TB) string {
	tb.Helper()
	ctx := context.Background()
	server, err := url.Parse(serverURL(tb))
	require.NoError(tb, err)
	name := "t_" + strings.ToLower(rand.Text()[:16])
	conn, err := pgx.Connect(ctx, server.String())
	require.NoError(tb, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
	require.NoError(tb, err)
	tb.Cleanup(func() {
		conn, err := pgx.Connect(ctx, server.String())
		require.NoError(tb, err)
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
		require.NoError(tb, err)
	})
	mine := *server
	mine.Path = "/" + name
	return mine.String()
}

// migratedDatabase is a database with the schema pgbaton.
func migratedDatabase(tb testing.TB) string {
	tb.Helper()
	dsn := database(tb)
	pool, err := pgxpool.New(context.Background(), dsn)
	require.NoError(tb, err)
	defer pool.Close()
	require.NoError(tb, pgbaton.Migrate(context.Background(), pool))
	return dsn
}

// connect opens a plain connection, closed with the test.
func connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
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
