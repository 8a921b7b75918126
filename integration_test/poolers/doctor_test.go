package poolers

import (
	"encoding/json"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

type finding struct{ Topic, Level, Says, Do string }

// TestDoctor has pgbaton doctor compare a real pooler's pool with what replicas open.
func TestDoctor(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "pgbaton")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", program, ".")
	build.Dir = filepath.Join("..", "..", "cmd", "pgbaton")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	dsn := lab.Database(t)
	schemaOf(t, dsn)
	pool := func(dsn string, args ...string) finding {
		cmd := exec.CommandContext(testkit.Context(t), program, append([]string{"doctor", "--json", "--ttl=1h", "--database-url", dsn}, args...)...)
		out, err := cmd.Output()
		var exit *exec.ExitError
		require.True(t, err == nil || errors.As(err, &exit), "%v", err)
		var findings []finding
		require.NoError(t, json.Unmarshal(out, &findings), "%s", out)
		for _, f := range findings {
			if f.Topic == "pool" {
				return f
			}
		}
		return finding{}
	}
	require.Empty(t, pool(dsn), "there is no pooler")

	session := lab.PgBouncer(t, dsn, "session", "default_pool_size = 12", "max_client_conn = 50")
	f := pool(session, "--session-pooler", "--replicas", "3")
	require.Equal(t, "ok", f.Level, f.Says)
	require.Regexp(t, `^PgBouncer [0-9.]+ in session mode has 12 server connections for this database and role, and takes 50 clients\. `+
		`At 3 replicas the service opens 12 at the most\.`, f.Says)
	f = pool(session, "--session-pooler", "--replicas", "4")
	require.Equal(t, "warning", f.Level)
	require.Contains(t, f.Do, "raise pool_size (and max_db_connections, if it is set) to 16")
	f = pool(session, "--session-pooler", "--replicas", "4", "--max-conns", "3")
	require.Equal(t, "ok", f.Level, f.Do)
	f = pool(session, "--replicas", "4") // a pooler that nobody has spoken of
	require.Equal(t, "warning", f.Level)

	few := lab.PgBouncer(t, dsn, "session", "default_pool_size = 12", "max_db_connections = 8")
	require.Contains(t, pool(few, "--session-pooler", "--replicas", "3").Says, "in session mode has 8 server connections")

	transaction := lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 4", "max_client_conn = 50")
	f = pool(transaction, "--replicas", "12")
	require.Equal(t, "ok", f.Level, f.Do)
	require.Contains(t, f.Says, "in transaction mode has 4 server connections")
	f = pool(transaction, "--replicas", "13")
	require.Equal(t, "warning", f.Level)
	require.Contains(t, f.Do, "max_client_conn: raise it above 52")

	users := filepath.Join(t.TempDir(), "users")
	for _, dir := range []string{filepath.Dir(users), filepath.Dir(filepath.Dir(users))} { // both are the test's own
		require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // read by another user
	}
	location, err := url.Parse(dsn)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(users, []byte(`"`+location.User.Username()+`" ""`+"\n"), 0o644)) //nolint:gosec // read by another user
	closed := lab.PgBouncer(t, dsn, "transaction", "auth_type = trust", "auth_file = "+users, "admin_users = somebody_else")
	f = pool(closed, "--replicas", "12")
	require.Equal(t, "ok", f.Level)
	require.Contains(t, f.Says, "The pooler could not be asked for the size of its pool")
	require.Contains(t, f.Do, "12 replicas open up to 48 connections")
}
