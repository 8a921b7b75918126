// Package testdb gives each test a database of its own on the server at DATABASE_URL.
package testdb

import (
	"context"
	"crypto/rand"
	"fmt"
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

// New makes an empty database and returns its URL. The database is dropped when the test ends.
func New(tb testing.TB) string {
	tb.Helper()
	server := os.Getenv("DATABASE_URL")
	require.NotEmpty(tb, server, "set DATABASE_URL to a PostgreSQL server on which databases and roles may be created")
	name := randomName()
	admin(tb, "CREATE DATABASE "+name)
	tb.Cleanup(func() { admin(tb, "DROP DATABASE "+name+" WITH (FORCE)") })

	u, err := url.Parse(server)
	require.NoError(tb, err)
	u.Path = "/" + name
	return u.String()
}

// NewMigrated is New with the schema pgbaton in it.
func NewMigrated(tb testing.TB) string {
	tb.Helper()
	dsn := New(tb)
	require.NoError(tb, pgbaton.Migrate(tb.Context(), Pool(tb, dsn)))
	return dsn
}

// rolePassword is the password of every role that Role makes.
const rolePassword = "service"

// Role makes a role without any rights and returns its name. Call it before New: a role that has rights in
// a database cannot be dropped before that database.
func Role(tb testing.TB) string {
	tb.Helper()
	name := randomName()
	admin(tb, "CREATE ROLE "+name+" LOGIN PASSWORD '"+rolePassword+"'")
	tb.Cleanup(func() { admin(tb, "DROP ROLE "+name) })
	return name
}

// With returns dsn with a parameter set.
func With(tb testing.TB, dsn, name, value string) string {
	tb.Helper()
	u, err := url.Parse(dsn)
	require.NoError(tb, err)
	query := u.Query()
	query.Set(name, value)
	u.RawQuery = query.Encode()
	return u.String()
}

// As returns dsn with another user.
func As(tb testing.TB, dsn, role string) string {
	tb.Helper()
	u, err := url.Parse(dsn)
	require.NoError(tb, err)
	u.User = url.UserPassword(role, rolePassword)
	return u.String()
}

// Pool opens a pool that is closed when the test ends.
func Pool(tb testing.TB, dsn string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), dsn)
	require.NoError(tb, err)
	tb.Cleanup(pool.Close)
	return pool
}

// Connect opens a connection that is closed when the test ends.
func Connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(tb.Context(), dsn)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Exec runs statements without parameters.
func Exec(tb testing.TB, conn *pgx.Conn, sql string) {
	tb.Helper()
	_, err := conn.PgConn().Exec(tb.Context(), sql).ReadAll()
	require.NoError(tb, err, sql)
}

// Value returns the one value of a query.
func Value[T any](tb testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	tb.Helper()
	rows, err := conn.Query(tb.Context(), sql, args...)
	require.NoError(tb, err, sql)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(tb, err, sql)
	return value
}

// WaitFor returns when the condition, a query of one boolean, is true. It is for what only the
// server's views tell, such as that a session waits.
func WaitFor(tb testing.TB, conn *pgx.Conn, sql string, args ...any) {
	tb.Helper()
	for end := time.Now().Add(30 * time.Second); !Value[bool](tb, conn, sql, args...); {
		require.True(tb, time.Now().Before(end), "not true after 30 s: %s", sql)
		Exec(tb, conn, "SELECT pg_sleep(0.005)")
	}
}

func admin(tb testing.TB, sql string) {
	tb.Helper()
	ctx := context.Background() // also for clean-up, when the test's has ended
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	require.NoError(tb, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	require.NoError(tb, err, sql)
}

func randomName() string {
	return fmt.Sprintf("pgbaton_test_%s", strings.ToLower(rand.Text()))
}
