// Package lab gives the integration tests what package testkit does not have: servers, one or every major, databases on them,
// PgBouncer, and figures with targets.
package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// pool is what a package's tests share: servers that are started when they are first asked for, and stopped by [Run].
var pool struct {
	sync.Mutex
	main    *pgserver.Server
	every   []*pgserver.Server
	err     error
	images  map[string]*pgserver.Server
	started []*pgserver.Server
}

// Server returns the server of tests that need no certain major.
func Server(tb testing.TB) *pgserver.Server {
	tb.Helper()
	pool.Lock()
	defer pool.Unlock()
	if pool.main == nil {
		server, err := pgserver.Start(context.Background())
		require.NoError(tb, err, "this test needs a PostgreSQL")
		pool.main, pool.started = server, append(pool.started, server)
	}
	return pool.main
}

// Servers returns the servers for what must hold on every PostgreSQL: one of each major at hand, the oldest first. With
// -short they are the oldest and the newest.
func Servers(tb testing.TB) []*pgserver.Server {
	tb.Helper()
	main := Server(tb)
	pool.Lock()
	defer pool.Unlock()
	if pool.every == nil && pool.err == nil {
		pool.every, pool.err = pgserver.StartAll(context.Background(), main, testing.Short())
		for _, server := range pool.every {
			if server != main {
				pool.started = append(pool.started, server)
			}
		}
	}
	require.NoError(tb, pool.err, "this test needs a PostgreSQL")
	return pool.every
}

// Image returns a server of a Docker image, which is started when it is first asked for.
func Image(tb testing.TB, image string) *pgserver.Server {
	tb.Helper()
	pool.Lock()
	defer pool.Unlock()
	if pool.images[image] == nil {
		server, err := pgserver.StartImage(context.Background(), image)
		require.NoError(tb, err)
		if pool.images == nil {
			pool.images = map[string]*pgserver.Server{}
		}
		pool.images[image], pool.started = server, append(pool.started, server)
	}
	return pool.images[image]
}

// Run is a package's tests; it stops the servers after them.
type Run struct{ *testing.M }

// Run runs the tests.
func (r Run) Run() int {
	code := r.M.Run()
	pool.Lock()
	defer pool.Unlock()
	for _, server := range pool.started {
		if err := server.Stop(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = max(code, 1)
		}
	}
	return code
}

// OwnServer starts a server for the test alone, whose processes it may kill and whose settings it may change. It does not
// wait for the disk: what was written outlives a killed process all the same, in the kernel's cache.
// Only local binaries give one. A machine that runs the tests on Docker, and has none, skips the test.
func OwnServer(tb testing.TB, settings map[string]string) *pgserver.Server {
	tb.Helper()
	dirs := pgserver.BinDirs()
	if len(dirs) == 0 && strings.HasPrefix(Server(tb).Origin(), "Docker") {
		const why = "this test kills a server of its own, and there are no PostgreSQL programs on this machine"
		if os.Getenv("CI") != "" {
			tb.Fatal(why)
		}
		tb.Skip("left out: " + why)
	}
	require.NotEmpty(tb, dirs, "this test needs PostgreSQL's programs")
	opts := []pgserver.Option{pgserver.WithSetting("fsync", "off")}
	for name, value := range settings {
		opts = append(opts, pgserver.WithSetting(name, value))
	}
	server, err := pgserver.StartBinaries(context.Background(), dirs[0], opts...)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, server.Stop(context.Background())) })
	return server
}

// Database makes a migrated database on the server that every test may use.
func Database(tb testing.TB) string {
	tb.Helper()
	return DatabaseOn(tb, Server(tb))
}

// DatabaseOn makes a migrated database on a server.
func DatabaseOn(tb testing.TB, server *pgserver.Server) string {
	tb.Helper()
	return testkit.MigratedOn(tb, server.URL())
}

// Counters makes the table that a hammer changes, with a row for each of key/0 … key/n-1.
func Counters(tb testing.TB, conn *pgx.Conn, key string, n int) {
	tb.Helper()
	testkit.Exec(tb, conn, "CREATE TABLE counter (key text PRIMARY KEY, value int8 NOT NULL DEFAULT 0, token int8 NOT NULL DEFAULT 0)")
	for i := range n {
		testkit.Exec(tb, conn, "INSERT INTO counter (key) VALUES ($1)", fmt.Sprintf("%s/%d", key, i))
	}
}
