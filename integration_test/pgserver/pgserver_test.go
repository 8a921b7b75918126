package pgserver

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStart_PrivateDatabases(t *testing.T) {
	t.Parallel()
	s, err := Start(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Stop(context.Background())) })
	t.Log(s.Origin())
	require.True(t, strings.HasPrefix(s.URL(), "postgres"), s.URL())
	require.GreaterOrEqual(t, s.Major(), minMajor)

	one, dropOne, err := s.CreateDatabase(t.Context())
	require.NoError(t, err)
	two, dropTwo, err := s.CreateDatabase(t.Context())
	require.NoError(t, err)
	name := query[string](t, one, "SELECT current_database()")
	require.NotEqual(t, name, query[string](t, two, "SELECT current_database()"))
	execute(t, one, "CREATE TABLE mine ()")
	require.Equal(t, int64(0), query[int64](t, two, "SELECT count(*) FROM pg_tables WHERE tablename = 'mine'"))

	require.NoError(t, dropOne(t.Context()))
	require.NoError(t, dropOne(t.Context()), "twice is safe")
	require.NoError(t, dropTwo(t.Context()))
	require.Equal(t, int64(0), query[int64](t, s.URL(), "SELECT count(*) FROM pg_database WHERE datname = '"+name+"'"))
}

func TestStart_UsesDatabaseURL(t *testing.T) {
	running := startBinaries(t)
	t.Setenv("DATABASE_URL", running.URL())
	s, err := Start(t.Context())
	require.NoError(t, err)
	require.Equal(t, "DATABASE_URL", s.Origin())
	require.Equal(t, running.Major(), s.Major())

	require.Zero(t, s.PID())
	require.Empty(t, s.DataDir()+s.BinDir()+s.LogFile())
	require.ErrorIs(t, s.Restart(t.Context(), "fast"), ErrNotOurs)
	require.NoError(t, s.Stop(t.Context()))
	require.NotEmpty(t, query[string](t, running.URL(), "SHOW server_version"), "it is not ours to stop")

	t.Setenv("DATABASE_URL", "postgres://postgres@127.0.0.1:1/postgres?connect_timeout=2")
	_, err = Start(t.Context())
	require.ErrorContains(t, err, "DATABASE_URL is set but does not serve")

	t.Setenv("DATABASE_URL", "host=127.0.0.1")
	_, err = Start(t.Context())
	require.ErrorContains(t, err, "must begin with postgres://")
}

func TestStart_NamesTheWaysWhenThereIsNone(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	cmd := helper(t, "start-bare", "PATH="+empty, "HOME="+empty, "XDG_RUNTIME_DIR="+empty,
		"DOCKER_HOST=unix://"+empty+"/docker.sock", "PG_BINDIR=", "PGBATON_TEST_BINDIRS=")
	begin := time.Now()
	out, err := cmd.Output()
	require.NoError(t, err)
	text := string(out)
	if strings.Contains(text, "<nil>") {
		t.Skip("the machine's own Docker engine answers at the default socket")
	}
	for _, way := range []string{"DATABASE_URL", "start Docker", "apt-get install postgresql", "PG_BINDIR"} {
		require.Contains(t, text, way)
	}
	require.Less(t, time.Since(begin), time.Minute, "it waits for what does not answer")
}

func TestStartAll(t *testing.T) {
	main, err := Start(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, main.Stop(context.Background())) })
	servers, err := StartAll(t.Context(), main, testing.Short())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, stopAll(context.Background(), servers)) })
	require.True(t, slices.IsSortedFunc(servers, func(a, b *Server) int { return a.Major() - b.Major() }))
	var majors []int
	for _, s := range servers {
		t.Log(s.Major(), s.Origin())
		require.NotContains(t, majors, s.Major())
		majors = append(majors, s.Major())
		require.NotEmpty(t, query[string](t, s.URL(), "SHOW server_version"))
	}
}

func TestStartAll_NamedServers(t *testing.T) {
	dirs := localBinDirs(t)
	main := startBinaries(t)
	t.Setenv("DATABASE_URL", main.URL())
	t.Setenv("PGBATON_TEST_IMAGES", "")

	t.Setenv("PGBATON_TEST_BINDIRS", strings.Join(dirs, ":"))
	list := candidates()
	require.Len(t, list, len(dirs))
	require.True(t, list[0].named)

	t.Setenv("PGBATON_TEST_BINDIRS", t.TempDir())
	_, err := StartAll(t.Context(), main, false)
	require.ErrorContains(t, err, "has no initdb", "one that was named must not be left out")
}

func TestBinDirs(t *testing.T) {
	dirs := localBinDirs(t)
	require.True(t, slices.IsSortedFunc(dirs, func(a, b string) int { return binaryMajor(b) - binaryMajor(a) }), dirs)

	oldest := dirs[len(dirs)-1]
	t.Setenv(envBinDir, oldest)
	require.Equal(t, oldest, preferredBinDirs()[0], "the one that was named comes first")
	require.ElementsMatch(t, dirs, BinDirs(), "and is not listed twice")
}

func TestWithDatabase(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ dsn, want string }{
		{"postgres://u:p%40ss@h:1/a?sslmode=disable", "postgres://u:p%40ss@h:1/new?sslmode=disable"},
		{"postgres://h", "postgres://h/new"},
		{"postgresql:///a?host=/run&dbname=b&database=c", "postgresql:///new?host=%2Frun"},
	} {
		got, err := withDatabase(c.dsn, "new")
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}

func TestTagMajor(t *testing.T) {
	t.Parallel()
	for image, want := range map[string]int{
		"postgres:17": 17, "postgres:17-alpine": 17, "postgres:14.2": 14,
		"postgres:latest": 0, "postgres": 0, "bitnami/postgres:15": 0, "": 0,
	} {
		require.Equal(t, want, tagMajor(image), image)
	}
}
