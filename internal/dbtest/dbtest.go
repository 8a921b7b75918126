// Package dbtest gives the tests of the internal packages databases of their own, and a bad network.
package dbtest

import (
	"context"
	"crypto/rand"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/migrations"
)

// Empty makes an empty database of the test's own and returns its URL.
func Empty(tb testing.TB) string {
	tb.Helper()
	dsn := os.Getenv("DATABASE_URL")
	if dsn == "" {
		tb.Fatal("this test needs a PostgreSQL: set DATABASE_URL to one that it may use as superuser, or run: make test")
	}
	server, err := url.Parse(dsn)
	if err != nil {
		tb.Fatalf("DATABASE_URL: %v", err)
	}
	name := "t_" + strings.ToLower(rand.Text()[:16])
	Exec(tb, dsn, "CREATE DATABASE "+name)
	tb.Cleanup(func() { Exec(tb, dsn, "DROP DATABASE "+name+" WITH (FORCE)") })
	server.Path = "/" + name
	return server.String()
}

// Migrated makes a database with the schema pgbaton.
func Migrated(tb testing.TB) string {
	tb.Helper()
	dsn := Empty(tb)
	files, err := migrations.FS.ReadDir(".")
	if err != nil {
		tb.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".up.sql") {
			continue
		}
		sql, err := migrations.FS.ReadFile(file.Name())
		if err != nil {
			tb.Fatal(err)
		}
		Exec(tb, dsn, string(sql))
	}
	return dsn
}

// Connect opens a connection that is closed with the test.
func Connect(tb testing.TB, dsn string) *pgx.Conn {
	tb.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// Exec runs SQL on a connection of its own.
func Exec(tb testing.TB, dsn, sql string) {
	tb.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		tb.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		tb.Fatal(err)
	}
}

// Value asks for one value.
func Value[T any](tb testing.TB, conn *pgx.Conn, sql string, args ...any) T {
	tb.Helper()
	var value T
	if err := conn.QueryRow(context.Background(), sql, args...).Scan(&value); err != nil {
		tb.Fatal(err)
	}
	return value
}
