package lab

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

// pgBouncerVariable names another PgBouncer than the one of the system.
const pgBouncerVariable = "PGBATON_PGBOUNCER"

// Bouncer is a PgBouncer of the test's own.
type Bouncer struct {
	// URL is the database's URL through it.
	URL string

	program string
	file    string // its configuration
	log     string // a file
	cmd     *exec.Cmd
}

// PgBouncer starts a PgBouncer in front of a database and returns the database's URL through it, see [StartPgBouncer].
func PgBouncer(t *testing.T, dsn, mode string, settings ...string) string {
	t.Helper()
	return StartPgBouncer(t, dsn, mode, settings...).URL
}

// StartPgBouncer starts a PgBouncer in front of a database, in transaction, statement or session mode. Settings are lines of its
// configuration. It ends with the test.
func StartPgBouncer(t *testing.T, dsn, mode string, settings ...string) *Bouncer {
	t.Helper()
	target, err := url.Parse(dsn)
	require.NoError(t, err)
	password, ok := target.User.Password()
	if ok {
		password = " password=" + password
	}
	port, err := pgserver.FreePort()
	require.NoError(t, err)
	dir := t.TempDir()
	log := filepath.Join(dir, "pgbouncer.log")
	require.NoError(t, os.WriteFile(log, nil, 0o600))
	require.NoError(t, os.Chmod(log, 0o666)) //nolint:gosec // written by another user
	config := fmt.Sprintf(`[databases]
* = host=%[1]s port=%[2]s user=%[3]s%[4]s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %[5]d
auth_type = any
admin_users = %[3]s
pool_mode = %[6]s
unix_socket_dir =
logfile = %[8]s
log_connections = 0
log_disconnections = 0
ignore_startup_parameters = extra_float_digits
%[7]s
`, target.Hostname(), target.Port(), target.User.Username(), password, port, mode,
		strings.Join(append([]string{"default_pool_size = 4"}, settings...), "\n"), log)
	b := &Bouncer{program: pgBouncerProgram(t), log: log, file: filepath.Join(dir, "pgbouncer.ini")}
	require.NoError(t, os.WriteFile(b.file, []byte(config), 0o644)) //nolint:gosec // read by another user
	for _, d := range []string{dir, filepath.Dir(dir)} {            // both are the test's own
		require.NoError(t, os.Chmod(d, 0o755)) //nolint:gosec // read by another user
	}
	through := *target
	through.Host = fmt.Sprintf("127.0.0.1:%d", port)
	query := through.Query()
	query.Set("sslmode", "disable")
	through.RawQuery = query.Encode()
	b.URL = through.String()
	b.start(t)
	t.Cleanup(func() { b.kill(t) })
	return b
}

// pgBouncerProgram is the PgBouncer to use.
func pgBouncerProgram(tb testing.TB) string {
	tb.Helper()
	if program := os.Getenv(pgBouncerVariable); program != "" {
		return program
	}
	program, err := exec.LookPath("pgbouncer")
	require.NoError(tb, err, "this test needs PgBouncer: integration_test/ensure-pgbouncer.sh (apt-get install pgbouncer)")
	return program
}

var bouncerVersion = regexp.MustCompile(`PgBouncer (\d+)\.(\d+)`)

// PgBouncerKeepsStatements reports whether the PgBouncer of this machine can keep prepared statements (max_prepared_statements),
// which came with 1.21.
func PgBouncerKeepsStatements(tb testing.TB) bool {
	tb.Helper()
	out, err := exec.CommandContext(context.Background(), pgBouncerProgram(tb), "--version").Output()
	require.NoError(tb, err)
	match := bouncerVersion.FindSubmatch(out)
	require.NotNil(tb, match, "%s", out)
	major, _ := strconv.Atoi(string(match[1])) // digits
	minor, _ := strconv.Atoi(string(match[2]))
	tb.Logf("%s", match[0])
	return major > 1 || minor >= 21
}

// start starts the program and waits until a client gets through.
func (b *Bouncer) start(tb testing.TB) {
	tb.Helper()
	args := []string{"-q", b.file}
	if os.Getuid() == 0 {
		args = []string{"-q", "-u", "nobody", b.file} // it refuses to run as root
	}
	// Not the context of the test, which ends before the cleanups in which clients still use the pooler.
	b.cmd = exec.CommandContext(context.Background(), b.program, args...)
	b.cmd.Stderr = os.Stderr
	require.NoError(tb, b.cmd.Start())
	awaitPooler(tb, b.URL)
}

// kill ends the program, and says so if it had ended before.
func (b *Bouncer) kill(tb testing.TB) {
	tb.Helper()
	_ = b.cmd.Process.Kill()
	err := b.cmd.Wait()
	if status, ok := b.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && (!status.Signaled() || status.Signal() != syscall.SIGKILL) {
		said, _ := os.ReadFile(b.log)
		tb.Logf("PgBouncer had ended by itself: %v\n%s", err, said[max(0, len(said)-4000):])
	}
}

// Restart kills the pooler, as a crash of its machine does, and starts it again at the same address.
func (b *Bouncer) Restart(tb testing.TB) {
	tb.Helper()
	b.kill(tb)
	b.start(tb)
}

// Tell gives the pooler's console a command, such as RECONNECT.
func (b *Bouncer) Tell(tb testing.TB, command string) {
	tb.Helper()
	console, err := url.Parse(b.URL)
	require.NoError(tb, err)
	console.Path = "/pgbouncer"
	config, err := pgx.ParseConfig(console.String())
	require.NoError(tb, err)
	config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(context.Background(), config)
	require.NoError(tb, err)
	defer conn.Close(context.Background())
	_, err = conn.PgConn().Exec(context.Background(), command).ReadAll()
	require.NoError(tb, err, command)
}

// awaitPooler waits until a client gets through a pooler to a server.
func awaitPooler(tb testing.TB, through string) {
	tb.Helper()
	require.Eventually(tb, func() bool {
		conn, err := pgx.Connect(context.Background(), through)
		if err != nil {
			return false
		}
		defer conn.Close(context.Background())
		return conn.Ping(context.Background()) == nil
	}, Hang, 20*time.Millisecond)
}
