//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// output calls the command, and returns what it prints.
func output(t *testing.T, dsn string, status int, args ...string) (out, errs string) {
	t.Helper()
	b := call(t, dsn, args...)
	out = b.requireStatus(t, status)
	return out, b.stderr.String()
}

// decoded is output in JSON.
func decoded[T any](t *testing.T, dsn string, status int, args ...string) T {
	t.Helper()
	out, errs := output(t, dsn, status, append(args, "--json")...)
	var value T
	require.NoError(t, json.Unmarshal([]byte(out), &value), "%s%s", out, errs)
	return value
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	out, _ := output(t, dsn, 1, "migrate", "version")
	require.Equal(t, "There is no schema pgbaton in this database: pgbaton migrate up\n", out)
	out, _ = output(t, dsn, 0, "migrate", "up")
	require.Contains(t, out, "serves this program")
	type version struct {
		Set    string
		Schema int
		Newest int
		Serves bool
	}
	there := decoded[version](t, dsn, 0, "migrate", "version")
	require.Equal(t, version{"full", there.Newest, there.Newest, true}, there)

	// The way down: asked for elsewhere than on a terminal, it needs a word.
	_, errs := output(t, dsn, 2, "migrate", "down", "1")
	require.Contains(t, errs, "--yes")
	for to := there.Newest - 1; to >= 1; to /= 2 {
		output(t, dsn, 0, "migrate", "down", "--yes", strconv.Itoa(to))
		require.Equal(t, to, decoded[version](t, dsn, 1, "migrate", "version").Schema)
		conn := testkit.Connect(t, dsn)
		require.Equal(t, to, testkit.Value[int](t, conn, "SELECT max(version)::int FROM pgbaton_schema_migrations WHERE NOT dirty"))
		output(t, dsn, 0, "migrate", "up")
	}
	out, _ = output(t, dsn, 0, "migrate", "down", "0", "--yes")
	require.Contains(t, out, "to 0")
	require.Zero(t, testkit.Value[int](t, testkit.Connect(t, dsn), "SELECT count(*)::int FROM pgbaton_schema_migrations"))
	out, _ = output(t, dsn, 0, "migrate", "down", "0", "--yes")
	require.Contains(t, out, "nothing to take back")
	output(t, dsn, 0, "migrate", "up")
	output(t, dsn, 0, "run", "k", "--", "true")
}

// TestMigrate_SQL runs what is printed.
func TestMigrate_SQL(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	sql, _ := output(t, dsn, 0, "migrate", "sql")
	testkit.Run(t, dsn, sql)
	output(t, dsn, 0, "migrate", "version")
	down, _ := output(t, dsn, 0, "migrate", "sql", "--down")
	testkit.Run(t, dsn, down)
	output(t, dsn, 1, "migrate", "version")
	portable, _ := output(t, dsn, 0, "migrate", "sql", "--portable")
	testkit.Run(t, dsn, portable)
	out, _ := output(t, dsn, 0, "migrate", "version")
	require.Contains(t, out, "portable set")
	output(t, dsn, 0, "migrate", "down", "0", "--yes")
	output(t, dsn, 1, "migrate", "version")
}

func TestMigrate_Engine(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	out, _ := output(t, dsn, 0, "migrate", "engine")
	require.Contains(t, out, "No engine is recorded")
	output(t, dsn, 0, "run", "k", "--", "true")
	require.Equal(t, "session", decoded[struct{ Engine string }](t, dsn, 0, "migrate", "engine").Engine)
	_, errs := output(t, dsn, 1, "migrate", "engine", "lease")
	require.Contains(t, errs, "the way leads over both")
	out, _ = output(t, dsn, 0, "migrate", "engine", "both")
	require.Contains(t, out, "restart the services")
	out, _ = output(t, dsn, 1, "doctor")
	require.Contains(t, out, "A change of engines has begun")
	b := call(t, dsn, "run", "k", "--", "sh", "-c", "echo $$; exec sleep 999")
	pids := b.pids(t)
	output(t, dsn, 0, "migrate", "engine", "lease")
	require.NoError(t, b.Process.Kill())
	waitGone(t, pids...)
	// Locks are leases from now on, and exclude as well.
	held := call(t, dsn, "run", "k", "--wait", "1m", "--", "sh", "-c", "echo ready; exec sleep 999")
	require.Equal(t, "ready", held.line(t))
	output(t, dsn, 75, "run", "k", "--try", "--", "true")
}

func TestSemaphore(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	_, errs := output(t, dsn, 1, "semaphore", "resize", "s", "3")
	require.Contains(t, errs, "not found")
	output(t, dsn, 0, "semaphore", "create", "s", "2")
	output(t, dsn, 0, "semaphore", "create", "s", "2")
	_, errs = output(t, dsn, 1, "semaphore", "create", "s", "3")
	require.Contains(t, errs, "pgbaton semaphore resize s 3")
	output(t, dsn, 0, "semaphore", "resize", "s", "3")
	output(t, dsn, 0, "semaphore", "create", "another", "1")

	held := call(t, dsn, "run", "s", "--semaphore", "3", "--permits", "2", "--name", "holder", "--", "sh", "-c", "echo ready; exec sleep 999")
	require.Equal(t, "ready", held.line(t))
	type semaphore struct {
		Name                string
		Capacity, Available int
		Holders             []struct {
			Client  string
			Permits int
		}
	}
	all := decoded[[]semaphore](t, dsn, 0, "semaphore", "ls")
	require.Len(t, all, 2)
	require.Equal(t, "another", all[0].Name)
	require.Equal(t, []int{3, 1, 2}, []int{all[1].Capacity, all[1].Available, all[1].Holders[0].Permits})
	require.Equal(t, "holder", all[1].Holders[0].Client)
	out, _ := output(t, dsn, 0, "semaphore", "ls", "s")
	require.Contains(t, out, "holder")
	require.NotContains(t, out, "another")
}

func TestFence(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	testkit.Exec(t, conn, "SELECT pgbaton.fence('ledger', pgbaton.next_token()), pgbaton.fence('other', pgbaton.next_token())")
	out, _ := output(t, dsn, 0, "fence", "show")
	require.Equal(t, 3, strings.Count(out, "\n"), out)
	one := decoded[[]struct{ Token int64 }](t, dsn, 0, "fence", "show", "ledger")
	require.Len(t, one, 1)
	require.Equal(t, testkit.Value[int64](t, conn, "SELECT token FROM pgbaton.fence WHERE resource = 'ledger'"), one[0].Token)
	testkit.Exec(t, conn, "UPDATE pgbaton.fence SET seen_at = seen_at - interval '31 days' WHERE resource = 'other'")
	out, _ = output(t, dsn, 0, "fence", "prune", "30d")
	require.Equal(t, "forgot 1 fences\n", out)
	_, errs := output(t, dsn, 1, "fence", "prune", "1m")
	require.Contains(t, errs, "less than an hour")
}

// TestRole is what a role without rights is told, and what it may do as a service.
func TestRole(t *testing.T) {
	t.Parallel()
	role := testkit.Role(t)
	dsn := testkit.Migrated(t)
	as := testkit.As(t, dsn, role)
	grant := "SELECT pgbaton.grant_service('" + role + "')"

	out, _ := output(t, as, 2, "doctor")
	require.Contains(t, out, grant+";\n")
	_, errs := output(t, as, 125, "run", "k", "--", "true")
	require.Contains(t, errs, "SELECT pgbaton.grant_service('")

	testkit.Run(t, dsn, grant)
	out, _ = output(t, as, 0, "doctor")
	require.Contains(t, out, "has what a service needs")
	output(t, as, 0, "run", "k", "--", "true")
	_, errs = output(t, as, 1, "semaphore", "ls")
	require.Contains(t, errs, "only the owner of the schema pgbaton and superusers may")
	_, errs = output(t, as, 1, "migrate", "down", "1", "--yes")
	require.Contains(t, errs, "migrate as")

	// A wrong password is not repeated, whatever is called.
	wrong := strings.Replace(as, ":service@", ":hush-hush@", 1)
	require.NotEqual(t, as, wrong)
	for _, args := range [][]string{
		{"run", "k", "--", "true"},
		{"doctor"},
		{"migrate", "up"},
		{"migrate", "version"},
		{"migrate", "down", "0", "--yes"},
		{"fence", "show"},
		{"semaphore", "ls", "s"},
		{"wait", "k"},
		{"resign", "k"},
		{"ls"},
		{"free", "k", "--yes"},
		{"bench"},
		{"demo"},
		{"lead", "k", "-v", "--", "true"},
	} {
		b := call(t, wrong, args...)
		said, err := io.ReadAll(b.lines)
		require.NoError(t, err)
		require.Error(t, b.Wait(), args)
		require.NotContains(t, string(said)+b.stderr.String(), "hush", args)
	}

	// One function is taken back: its grant is named as well.
	testkit.Run(t, dsn, "REVOKE EXECUTE ON FUNCTION pgbaton.look_run(text) FROM "+role)
	out, _ = output(t, as, 2, "doctor")
	require.Contains(t, out, "may not call pgbaton.look_run(text)")
	require.Contains(t, out, "GRANT EXECUTE ON FUNCTION pgbaton.look_run(text) TO "+role+";\n")
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	out, _ := output(t, dsn, 2, "doctor")
	require.Contains(t, out, "pgbaton migrate up")
	output(t, dsn, 0, "migrate", "up")
	out, errs := output(t, dsn, 0, "doctor")
	require.Empty(t, errs)
	require.NotContains(t, out, "warning")
	for _, topic := range []string{
		"server", "client", "pooler", "protections", "schema", "engine", "privileges", "connections", "lock table", "waiting", "clock", "round trip",
		"idle transactions", "prepared transactions", "rows", "stale rows",
	} {
		require.Contains(t, out, "ok       "+topic+": ")
	}
	require.Empty(t, testkit.Value[string](t, testkit.Connect(t, dsn), "SELECT coalesce(string_agg(engine, ''), '') FROM pgbaton.lock_engine"),
		"a look records no engine")

	findings := decoded[[]finding](t, dsn, 1, "doctor", "--replicas", "100000")
	require.Contains(t, findings[7].Do, "max_connections")
	require.Equal(t, []string{"connections", "warning"}, []string{findings[7].Topic, findings[7].Level})

	_, errs = output(t, "postgres://u:hush@127.0.0.1:1/d", 2, "doctor")
	require.NotContains(t, errs, "hush")
}

func TestBench(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	type figure struct {
		What  string
		Count int
	}
	figures := decoded[[]figure](t, dsn, 0, "bench", "--time", "200ms")
	require.Len(t, figures, 4)
	for _, f := range figures {
		require.Positive(t, f.Count, f.What)
	}
}

// TestInterrupted: what waits without a command ends with the signal's status.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	_, err := client(t, dsn).Acquire(t.Context(), pgbaton.Name("k"))
	require.NoError(t, err)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		b := call(t, dsn, "wait", "k")
		testkit.WaitFor(t, testkit.Connect(t, dsn), sqlWaits)
		require.NoError(t, b.Process.Signal(sig))
		b.requireStatus(t, 128+int(sig))
		require.Contains(t, b.stderr.String(), "interrupted")
		testkit.WaitFor(t, testkit.Connect(t, dsn), "SELECT NOT EXISTS ("+sqlWaits+" HAVING count(*) > 0)")
	}
}

// TestCompletion_Bash loads the script into a shell.
func TestCompletion_Bash(t *testing.T) {
	t.Parallel()
	script := exec.Command("bash", "-c", `set -e; source <("$0" completion bash); complete -p pgbaton`, program)
	var errs bytes.Buffer
	script.Stderr = &errs
	out, err := script.Output()
	require.NoError(t, err, errs.String())
	require.Contains(t, string(out), "__start_pgbaton")
}
