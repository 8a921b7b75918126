// Package lab gives the integration tests what they work with: servers, databases with the schema pgbaton,
// control connections and figures.
package lab

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// pool is what a package's tests share: servers that are started when they are first asked for, and stopped by [Run].
var pool struct {
	sync.Mutex
	main    *pgserver.Server
	every   []*pgserver.Server
	err     error
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

// OwnServer starts a server for the test alone, whose processes it may kill and whose settings it may change.
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
	var opts []pgserver.Option
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
	return dbtest.MigratedOn(tb, server.URL())
}

// Client opens a client in this process, closed with the test. Its TTL is longer than a busy machine keeps it from the server,
// unless the config says another.
func Client(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	var own pgbaton.Config
	if cfg != nil {
		own = *cfg
	}
	own.TTL = cmp.Or(own.TTL, time.Minute)
	client, err := pgbaton.Open(context.Background(), dsn, &own)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Hang)
		defer cancel()
		require.NoError(tb, client.Close(ctx))
	})
	return client
}

// here leaves out the sessions of other tests, in databases of their own, that may have the same name.
const here = " AND datname = current_database()"

// Session is a session of a client, as pg_stat_activity shows it.
type Session struct {
	PID    int
	Anchor bool // it holds locks, or its last statement was an anchor's
	Query  string
}

// Sessions lists the sessions with an application_name.
func Sessions(tb testing.TB, conn *pgx.Conn, name string) []Session {
	tb.Helper()
	rows, err := conn.Query(context.Background(),
		"SELECT pid, query !~ 'wait_for_turn|unlock_all', query FROM pg_stat_activity WHERE application_name = $1"+here+" ORDER BY pid", name)
	require.NoError(tb, err)
	sessions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Session])
	require.NoError(tb, err)
	return sessions
}

// HeldBy counts the advisory locks that sessions with an application_name hold or wait for.
func HeldBy(tb testing.TB, conn *pgx.Conn, name string) int {
	tb.Helper()
	return dbtest.Value[int](tb, conn, `SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
		WHERE l.locktype = 'advisory' AND a.application_name = $1`+here, name)
}

// Waiting counts the sessions with an application_name that wait for an advisory lock.
func Waiting(tb testing.TB, conn *pgx.Conn, name string) int {
	tb.Helper()
	return dbtest.Value[int](tb, conn, `SELECT count(*) FROM pg_stat_activity
		WHERE application_name = $1 AND wait_event_type = 'Lock' AND wait_event = 'advisory'`+here, name)
}

// Statements looks at the sessions with an application_name for a while, often enough to see each of their
// statements begin, and returns how many began and how many sessions there were at the most.
func Statements(tb testing.TB, control *pgx.Conn, name string, watched time.Duration) (statements, most int) {
	tb.Helper()
	started := map[int]time.Time{}
	ticker := time.NewTicker(3 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(watched); time.Now().Before(end); <-ticker.C {
		rows, err := control.Query(context.Background(),
			"SELECT pid, query_start FROM pg_stat_activity WHERE application_name = $1 AND query_start IS NOT NULL"+here, name)
		require.NoError(tb, err)
		sessions := 0
		var pid int
		var at time.Time
		_, err = pgx.ForEachRow(rows, []any{&pid, &at}, func() error {
			sessions++
			if before, seen := started[pid]; seen && !before.Equal(at) {
				statements++
			}
			started[pid] = at
			return nil
		})
		require.NoError(tb, err)
		most = max(most, sessions)
	}
	return statements, most
}

// Eventually waits until a condition that only the server can tell of holds.
func Eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	for end := time.Now().Add(Hang); !condition(); time.Sleep(2 * time.Millisecond) {
		require.True(tb, time.Now().Before(end), "not within %v: %s", Hang, what)
	}
}

// Counters makes the table that a hammer changes, with a row for each of key/0 … key/n-1.
func Counters(tb testing.TB, conn *pgx.Conn, key string, n int) {
	tb.Helper()
	dbtest.Exec(tb, conn, "CREATE TABLE counter (key text PRIMARY KEY, value int8 NOT NULL DEFAULT 0, token int8 NOT NULL DEFAULT 0)")
	for i := range n {
		dbtest.Exec(tb, conn, "INSERT INTO counter (key) VALUES ($1)", fmt.Sprintf("%s/%d", key, i))
	}
}
