// Package testkit gives the tests of both modules databases of their own, roles in them, a bad network,
// looks at the server's sessions, and a pace that fits the machine.
package testkit

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
)

// Server is the server that the tests may use as superuser.
func Server(tb testing.TB) string {
	tb.Helper()
	dsn := os.Getenv("DATABASE_URL")
	require.NotEmpty(tb, dsn, "this test needs a PostgreSQL: set DATABASE_URL to one that it may use as superuser, or run: make test")
	return dsn
}

// Empty makes an empty database of the test's own on [Server], and returns its URL.
func Empty(tb testing.TB) string {
	tb.Helper()
	return EmptyOn(tb, Server(tb))
}

// EmptyOn is [Empty] on another server.
func EmptyOn(tb testing.TB, server string) string {
	tb.Helper()
	name := randomName()
	Run(tb, server, "CREATE DATABASE "+name)
	return private(tb, server, name)
}

// private has a database dropped at the end of the test, and returns its URL.
func private(tb testing.TB, server, name string) string {
	tb.Helper()
	tb.Cleanup(func() { Run(tb, server, "DROP DATABASE "+name+" WITH (FORCE)") })
	return database(tb, server, name)
}

// database is the URL of a server with another database.
func database(tb testing.TB, server, name string) string {
	tb.Helper()
	u, err := url.Parse(server)
	require.NoError(tb, err, "the server's address must be a URL")
	u.Path = "/" + name
	return u.String()
}

// With is dsn with a parameter set.
func With(tb testing.TB, dsn, name, value string) string {
	tb.Helper()
	u, err := url.Parse(dsn)
	require.NoError(tb, err)
	query := u.Query()
	query.Set(name, value)
	u.RawQuery = query.Encode()
	return u.String()
}

// Named is dsn with an application_name, by which sessions can be told from others.
func Named(tb testing.TB, dsn, name string) string {
	tb.Helper()
	return With(tb, dsn, "application_name", name)
}

// rolePassword is the password of every role that Role makes.
const rolePassword = "service"

// Role makes a role without any rights on [Server] and returns its name. Call it before Empty: a role that has rights
// in a database cannot be dropped before that database.
func Role(tb testing.TB) string {
	tb.Helper()
	server, name := Server(tb), randomName()
	Run(tb, server, "CREATE ROLE "+name+" LOGIN PASSWORD '"+rolePassword+"'")
	tb.Cleanup(func() { Run(tb, server, "DROP ROLE "+name) })
	return name
}

// As is dsn with a user that [Role] has made.
func As(tb testing.TB, dsn, role string) string {
	tb.Helper()
	u, err := url.Parse(dsn)
	require.NoError(tb, err)
	u.User = url.UserPassword(role, rolePassword)
	return u.String()
}

// Pool opens a pool that is closed with the test.
func Pool(tb testing.TB, dsn string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(context.Background(), dsn)
	require.NoError(tb, err)
	tb.Cleanup(pool.Close)
	return pool
}

// Connect opens a connection that is closed with the test.
func Connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Run runs statements without parameters on a connection of its own.
func Run(tb testing.TB, dsn, sql string) {
	tb.Helper()
	require.NoError(tb, try(dsn, sql), sql)
}

// try is [Run] for statements that may fail.
func try(dsn, sql string) error {
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	_, err = conn.PgConn().Exec(context.Background(), sql).ReadAll()
	return err
}

// Exec runs statements: several, or one with parameters.
func Exec(tb testing.TB, conn *pgx.Conn, sql string, args ...any) {
	tb.Helper()
	if len(args) == 0 {
		_, err := conn.PgConn().Exec(context.Background(), sql).ReadAll()
		require.NoError(tb, err, sql)
		return
	}
	_, err := conn.Exec(context.Background(), sql, args...)
	require.NoError(tb, err, sql)
}

// Value is the one value of a query.
func Value[T any](tb testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	tb.Helper()
	rows, err := conn.Query(context.Background(), sql, args...)
	require.NoError(tb, err, sql)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(tb, err, sql)
	return value
}

// WaitFor returns when the condition, a query of one boolean, is true. It is for what only the server's views tell,
// such as that a session waits.
func WaitFor(tb testing.TB, conn *pgx.Conn, sql string, args ...any) {
	tb.Helper()
	for end := time.Now().Add(Patience); !Value[bool](tb, conn, sql, args...); {
		require.True(tb, time.Now().Before(end), "not true after a minute: %s", sql)
		Exec(tb, conn, "SELECT pg_sleep(0.005)")
	}
}

func randomName() string { return "pgbaton_test_" + strings.ToLower(rand.Text()) }
