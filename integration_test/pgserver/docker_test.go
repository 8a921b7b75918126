package pgserver

import (
	"context"
	"testing"

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
