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

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// New makes an empty database and returns its URL. The database is dropped when the test ends.
func New(t testing.TB) string {
	t.Helper()
	server := os.Getenv("DATABASE_URL")
	require.NotEmpty(t, server, "set DATABASE_URL to a PostgreSQL server on which databases and roles may be created")
	name := randomName()
	admin(t, "CREATE DATABASE "+name)
	t.Cleanup(func() { admin(t, "DROP DATABASE "+name+" WITH (FORCE)") })

	u, err := url.Parse(server)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

// NewMigrated is New with the schema pgbaton in it.
func NewMigrated(t testing.TB) string {
	t.Helper()
	dsn := New(t)
	require.NoError(t, pgbaton.Migrate(t.Context(), Pool(t, dsn)))
	return dsn
}

// Role makes a role without any rights and returns its name. Call it before New: a role that has rights in
// a database cannot be dropped before that database.
func Role(t testing.TB) string {
	t.Helper()
	name := randomName()
	admin(t, "CREATE ROLE "+name+" LOGIN")
	t.Cleanup(func() { admin(t, "DROP ROLE "+name) })
	return name
}

// As returns dsn with another user.
func As(t testing.TB, dsn, role string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.User = url.User(role)
	return u.String()
}

// Pool opens a pool that is closed when the test ends.
func Pool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// Connect opens a connection that is closed when the test ends.
func Connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Exec runs statements without parameters.
func Exec(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	require.NoError(t, err, sql)
}

// Value returns the one value of a query.
func Value[T any](t testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err, sql)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	require.NoError(t, err, sql)
	return value
}

// WaitFor returns when the condition, a query of one boolean, is true. It is for what only the
// server's views tell, such as that a session waits.
func WaitFor(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	for !Value[bool](t, conn, sql, args...) {
		require.NoError(t, t.Context().Err())
		Exec(t, conn, "SELECT pg_sleep(0.005)")
	}
}

func admin(t testing.TB, sql string) {
	t.Helper()
	ctx := context.Background() // also for clean-up, when the test's has ended
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	require.NoError(t, err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	require.NoError(t, err, sql)
}

func randomName() string {
	return fmt.Sprintf("pgbaton_test_%s", strings.ToLower(rand.Text()))
}
