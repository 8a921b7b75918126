// Package tokens_test holds tokens to their law, that they only ever rise, through whatever can happen to the server
// or the data that they come from. Each kind of damage is also done to mutants, schemas with a known
// mistake, to prove that the damage is real and that the check sees it.
package tokens_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mutants are known mistakes, each as the SQL that makes it.
const (
	none        = "SELECT"
	bareNextval = `CREATE OR REPLACE FUNCTION pgbaton.next_token() RETURNS bigint LANGUAGE sql VOLATILE
		AS $$ SELECT nextval('pgbaton.token') $$`
	// The row alone, without what it says.
	rowOnly = `CREATE OR REPLACE FUNCTION pgbaton.tokens_trusted() RETURNS boolean LANGUAGE sql SECURITY DEFINER
		AS $$ SELECT EXISTS (SELECT FROM pgbaton.incarnation) $$`
	noCheck = `CREATE OR REPLACE FUNCTION pgbaton.tokens_trusted() RETURNS boolean LANGUAGE sql AS 'SELECT true'`
	// The token is drawn before the lock is waited for.
	tokenFirst = `CREATE OR REPLACE FUNCTION pgbaton.lock_for_transaction(
			key bigint, pair boolean, shared boolean, wait_ms integer) RETURNS bigint LANGUAGE plpgsql AS $$
		DECLARE token CONSTANT bigint := pgbaton.next_token();
		BEGIN PERFORM pg_advisory_xact_lock(key); RETURN token; END $$`
	// A repair that puts the sequence 16 s ahead of the clock each time that it comes.
	wideGap = `DO $$ BEGIN EXECUTE replace(replace(
		pg_get_functiondef('pgbaton.repair_tokens()'::regprocedure),
		'known < clock AND', 'false AND'), 'IF known < clock THEN', 'IF false THEN'); END $$`
	cache20 = `ALTER SEQUENCE pgbaton.token CACHE 20`
)

// history is every token in the order of the grants, and what is wrong with it.
type history struct {
	newest     int64
	tokens     int
	violations []string
}

func (h *history) add(what string, token int64) {
	h.tokens++
	if token <= h.newest || token >= 1<<53 {
		h.violations = append(h.violations, fmt.Sprintf("%s: %d after %d", what, token, h.newest))
	}
	h.newest = max(h.newest, token)
}

// require says whether there are violations, which a mutant must have.
func (h *history) require(t *testing.T, mutant string) {
	t.Helper()
	t.Logf("%d tokens, newest %d, violations: %v", h.tokens, h.newest, h.violations)
	if mutant == none {
		require.Empty(t, h.violations)
	} else {
		require.NotEmpty(t, h.violations, "the mutant was not caught")
	}
}

// draw draws by SQL.
func (h *history) draw(t *testing.T, conn *pgx.Conn, n int) {
	t.Helper()
	for range n {
		h.add("next_token", testkit.Value[int64](t, conn, "SELECT pgbaton.next_token()"))
	}
}

// grant locks and unlocks by a client of its own.
func (h *history) grant(t *testing.T, dsn string) {
	t.Helper()
	client, err := pgbaton.Open(t.Context(), dsn, nil)
	require.NoError(t, err)
	for range 3 {
		lock, err := client.Acquire(t.Context(), pgbaton.Name("k"))
		require.NoError(t, err)
		h.add("Acquire", int64(lock.Token()))
		require.NoError(t, lock.Release(t.Context()))
	}
	require.NoError(t, client.Close(t.Context()))
}

// everyMajor runs a test on a durable server of each PostgreSQL of which there are binaries; with -short on one of them, another for
// each test.
func everyMajor(t *testing.T, test func(t *testing.T, bindir string)) {
	t.Helper()
	dirs := pgserver.BinDirs()
	if len(dirs) == 0 {
		leaveOut(t, "there are no PostgreSQL programs on this machine")
	}
	if testing.Short() {
		name := fnv.New32a()
		_, _ = name.Write([]byte(t.Name()))
		dirs = dirs[int(name.Sum32()%uint32(len(dirs))):][:1] //nolint:gosec // a handful
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			t.Parallel()
			test(t, dir)
		})
	}
}

// withPrograms is the directory of binaries that has all the programs named; without one the test is skipped.
func withPrograms(t *testing.T, programs ...string) string {
	t.Helper()
	for _, dir := range pgserver.BinDirs() {
		if has(dir, programs...) {
			return dir
		}
	}
	leaveOut(t, fmt.Sprintf("no PostgreSQL here has %v", programs))
	return ""
}

func has(dir string, programs ...string) bool {
	for _, program := range programs {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}

// start starts a durable server with the schema and a mutation of it.
func start(t *testing.T, bindir, mutant string, settings ...string) *pgserver.Server {
	t.Helper()
	opts := []pgserver.Option{pgserver.WithSetting("autovacuum", "off"), pgserver.WithSetting("max_connections", "30")}
	for i := 0; i < len(settings); i += 2 {
		opts = append(opts, pgserver.WithSetting(settings[i], settings[i+1]))
	}
	server, err := pgserver.StartBinaries(t.Context(), bindir, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
	require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, server.URL())))
	conn := testkit.Connect(t, server.URL())
	testkit.Exec(t, conn, "SELECT pgbaton.next_token()")
	testkit.Exec(t, conn, mutant)
	return server
}

// waitUp waits until a server serves again.
func waitUp(t *testing.T, dsn string) {
	t.Helper()
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return false
		}
		return conn.Close(ctx) == nil
	}, time.Minute, 20*time.Millisecond)
}

func pidOf(conn *pgx.Conn) int { return int(conn.PgConn().PID()) }

// leaveOut skips a test for want of programs, and says so; in CI it fails.
func leaveOut(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip("left out:", why)
}

// startEmpty starts a server without the schema.
func startEmpty(t *testing.T, bindir string) *pgserver.Server {
	t.Helper()
	server, err := pgserver.StartBinaries(t.Context(), bindir)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Stop(context.Background())) })
	return server
}

func migrate(t *testing.T, dsn string) {
	t.Helper()
	pool := testkit.Pool(t, dsn)
	require.NoError(t, pgbaton.Migrate(t.Context(), pool))
}

func withDatabase(t *testing.T, dsn, name string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

func nameOf(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	return filepath.Base(u.Path)
}
