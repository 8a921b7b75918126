package pgserver

import (
	"bufio"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

func TestDocker(t *testing.T) {
	t.Setenv("DATABASE_URL", "")
	t.Setenv(envImage, "postgres:17-no-such-variant") // pulling fails, a local image serves
	image, err := findImage(t.Context())
	if err != nil {
		t.Skip("no Docker engine with a postgres image:", err)
	}
	require.GreaterOrEqual(t, tagMajor(image), minMajor)

	s, err := Start(t.Context(), WithSetting("max_connections", "33"), WithSetting("log_lock_waits", "on"))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Stop(context.Background())) }()
	require.Equal(t, dockerOrigin(image), s.Origin())
	require.Equal(t, tagMajor(image), s.Major())
	require.Equal(t, "33", query[string](t, s.URL(), "SHOW max_connections"))
	require.Equal(t, "on", query[string](t, s.URL(), "SHOW log_lock_waits"))
	require.Zero(t, s.PID())
	require.ErrorIs(t, s.Restart(t.Context(), "fast"), ErrNotOurs)
}

func TestDocker_ContainerOfAKilledProcessIsRemoved(t *testing.T) {
	t.Parallel()
	image, err := findImage(t.Context())
	if err != nil {
		t.Skip("no Docker engine with a postgres image:", err)
	}
	if _, err = exec.LookPath("docker"); err != nil {
		t.Skip("no docker command")
	}
	cmd := helper(t, "docker", "PGSERVER_TEST_IMAGE="+image)
	_, err = cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	url, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	url = strings.TrimSpace(url)
	require.NotEmpty(t, query[string](t, url, "SHOW server_version"), url)

	require.NoError(t, cmd.Process.Kill())
	require.Eventually(t, func() bool {
		conn, err := pgx.Connect(t.Context(), url)
		if err == nil {
			closeConn(t.Context(), conn)
		}
		return err != nil
	}, time.Minute, 50*time.Millisecond)
}
