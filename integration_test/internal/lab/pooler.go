package lab

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// PgBouncer starts a PgBouncer in front of a database, in transaction or session mode, and returns the
// database's URL through it. Settings are lines of its configuration. It ends with the test.
func PgBouncer(t *testing.T, dsn, mode string, settings ...string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil && os.Getenv("CI") == "" {
		t.Skip("left out: this test needs PgBouncer (apt-get install pgbouncer)")
	}
	require.NoError(t, err, "this test needs PgBouncer (apt-get install pgbouncer)")
	target, err := url.Parse(dsn)
	require.NoError(t, err)
	password, ok := target.User.Password()
	if ok {
		password = " password=" + password
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // only to find a free port
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())

	dir := t.TempDir()
	config := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
auth_type = any
pool_mode = %s
unix_socket_dir =
ignore_startup_parameters = extra_float_digits
%s
`, target.Hostname(), target.Port(), target.User.Username(), password, port, mode,
		strings.Join(append([]string{"default_pool_size = 4"}, settings...), "\n"))
	file := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o644)) //nolint:gosec // read by another user
	for _, d := range []string{dir, filepath.Dir(dir)} {          // both are the test's own
		require.NoError(t, os.Chmod(d, 0o755)) //nolint:gosec // read by another user
	}
	args := []string{"-q", file}
	if os.Getuid() == 0 {
		args = []string{"-q", "-u", "nobody", file} // it refuses to run as root
	}
	// Not the context of the test, which ends before the cleanups in which clients still use the pooler.
	cmd := exec.CommandContext(context.Background(), program, args...)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	through := *target
	through.Host = fmt.Sprintf("127.0.0.1:%d", port)
	query := through.Query()
	query.Set("sslmode", "disable")
	through.RawQuery = query.Encode()
	require.Eventually(t, func() bool {
		conn, err := pgx.Connect(context.Background(), through.String())
		if err != nil {
			return false
		}
		return conn.Close(context.Background()) == nil
	}, Hang, 20*time.Millisecond)
	return through.String()
}
