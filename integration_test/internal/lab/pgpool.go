package lab

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

// Pgpool starts a Pgpool-II with load balancing over a primary and a streaming standby, and returns the primary's URL through it.
// All statements that it takes for reads go to the standby. Settings are lines of its configuration. It ends with the test.
func Pgpool(t *testing.T, primary, standby string, settings ...string) string {
	t.Helper()
	program, err := exec.LookPath("pgpool")
	require.NoError(t, err, "this test needs Pgpool-II: integration_test/ensure-pgpool.sh (apt-get install pgpool2)")
	through, err := url.Parse(primary)
	require.NoError(t, err)
	read, err := url.Parse(standby)
	require.NoError(t, err)
	password, _ := through.User.Password()
	ports := make([]int, 2)
	for i := range ports {
		ports[i], err = pgserver.FreePort()
		require.NoError(t, err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`
backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = %d
pcp_port = %d
%s
pid_file_name = '%[4]s/pgpool.pid'
logdir = '%[4]s'
backend_hostname0 = '%[5]s'
backend_port0 = %[6]s
backend_weight0 = 0
backend_flag0 = 'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'
backend_hostname1 = '%[7]s'
backend_port1 = %[8]s
backend_weight1 = 1
backend_flag1 = 'DISALLOW_TO_FAILOVER'
enable_pool_hba = off
pool_passwd = ''
allow_clear_text_frontend_auth = on
sr_check_user = '%[9]s'
sr_check_password = '%[10]s'
num_init_children = 40
max_pool = 1
load_balance_mode = on
%[11]s
`, ports[0], ports[1], socketSettings(t, program, dir), dir, through.Hostname(), through.Port(), read.Hostname(), read.Port(),
		through.User.Username(), password, strings.Join(settings, "\n"))
	file := filepath.Join(dir, "pgpool.conf")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	for _, other := range []string{"pcp.conf", "pool_hba.conf"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, other), nil, 0o600))
	}
	cmd := exec.CommandContext(context.Background(), program, "-n", "-f", file,
		"-F", filepath.Join(dir, "pcp.conf"), "-a", filepath.Join(dir, "pool_hba.conf"))
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it has a process for each client
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("Pgpool-II: %s", text)
		}
	})
	through.Host = fmt.Sprintf("127.0.0.1:%d", ports[0])
	query := through.Query()
	query.Set("sslmode", "disable")
	through.RawQuery = query.Encode()
	awaitPooler(t, through.String())
	return through.String()
}

// socketSettings are the settings of the sockets' directory, whose names changed with 4.4.
func socketSettings(tb testing.TB, program, dir string) string {
	tb.Helper()
	out, err := exec.CommandContext(context.Background(), program, "--version").CombinedOutput()
	require.NoError(tb, err)
	var major, minor int
	_, err = fmt.Sscanf(string(out), "pgpool-II version %d.%d", &major, &minor)
	require.NoError(tb, err, "%s", out)
	tb.Logf("Pgpool-II %d.%d", major, minor)
	if major > 4 || minor >= 4 {
		return fmt.Sprintf("unix_socket_directories = '%[1]s'\npcp_socket_dir = '%[1]s'", dir)
	}
	return fmt.Sprintf("socket_dir = '%[1]s'\npcp_socket_dir = '%[1]s'", dir)
}
