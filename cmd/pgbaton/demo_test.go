package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// program is the command, built by TestMain: the demo starts itself again, which a test binary cannot.
var program string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "pgbaton")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "pgbaton")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

var databases atomic.Int64

// database makes a database of its own for a test, and returns its URL and a connection to it.
func database(t *testing.T) (string, *pgx.Conn) {
	t.Helper()
	dsn := os.Getenv("DATABASE_URL")
	require.NotEmpty(t, dsn, "DATABASE_URL must name a PostgreSQL server on which databases may be created")
	location, err := url.Parse(dsn)
	require.NoError(t, err, "DATABASE_URL must be a URL")

	ctx := context.WithoutCancel(t.Context())
	admin, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, admin.Close(ctx)) })
	name := fmt.Sprintf("pgbaton_demo_test_%d_%d", os.Getpid(), databases.Add(1))
	quoted := pgx.Identifier{name}.Sanitize()
	_, err = admin.Exec(ctx, "CREATE DATABASE "+quoted)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(ctx, "DROP DATABASE "+quoted+" WITH (FORCE)")
		require.NoError(t, err)
	})

	location.Path = "/" + name
	conn, err := pgx.Connect(ctx, location.String())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close(ctx)) })
	return location.String(), conn
}

func demoCommand(t *testing.T, dsn string, args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+dsn, "DEMO_WORKERS=3")
	cmd.Stdout, cmd.Stderr = &out, &errs
	return cmd, &out, &errs
}

func requireExit(t *testing.T, want int, err error, output ...any) {
	t.Helper()
	if want == 0 {
		require.NoError(t, err, "%s", fmt.Sprint(output...))
		return
	}
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, want, exit.ExitCode(), "%s", fmt.Sprint(output...))
}

func schemaExists(t *testing.T, conn *pgx.Conn) bool {
	t.Helper()
	var exists bool
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT to_regnamespace('pgbaton_demo') IS NOT NULL").Scan(&exists))
	return exists
}

func TestDemo_EverythingAsExpected(t *testing.T) {
	t.Parallel()
	dsn, conn := database(t)
	// What a demo that was killed left behind is not in the way.
	_, err := conn.Exec(t.Context(), `
		CREATE SCHEMA pgbaton_demo;
		COMMENT ON SCHEMA pgbaton_demo IS 'made by pgbaton demo, may be dropped';
		CREATE TABLE pgbaton_demo.employee (other text)`)
	require.NoError(t, err)

	cmd, out, errs := demoCommand(t, dsn, "--duration", "1s", "--rounds", "2")
	err = cmd.Run()
	for duration := 2 * time.Second; err != nil && strings.Contains(out.String(), "proved nothing") && duration <= 16*time.Second; duration *= 2 {
		// What goes wrong without locks does so by chance, and less often where workers come to nothing.
		cmd, out, errs = demoCommand(t, dsn, "--duration", duration.String(), "--rounds", "2")
		err = cmd.Run()
	}
	requireExit(t, 0, err, out, errs)
	for _, want := range []string{
		"Worker processes: 3.", "\n1 no lock ", "\n2 advisory lock ", "\n3 row lock ", "\n4 version, no retry ",
		"\n5 version, retries ", "\n6 readers, no lock ", "\n6 readers, locks ", "\n7 holder killed ",
		"\n8 frozen, no fence ", "\n8 frozen, fence ", "Without a fence its late write",
		"\n9 no semaphore ", "\n9 semaphore ", "\n9. Without a semaphore up to ", "\n10 leader killed ",
		"\nWhich to choose when:\n", "\nEverything was as expected.\n",
	} {
		require.Contains(t, out.String(), want)
	}
	for line := range strings.Lines(out.String()) {
		require.LessOrEqual(t, len(line), 101, line)
	}
	require.Equal(t, 10, strings.Count(errs.String(), "as expected\n"), errs)
	require.NotContains(t, errs.String(), "\x1b", "no bar where there is no terminal")
	var fences int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pgbaton.fence").Scan(&fences))
	require.Zero(t, fences)
	var semaphores int
	require.NoError(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pgbaton.semaphore").Scan(&semaphores))
	require.Zero(t, semaphores)
	require.False(t, schemaExists(t, conn))
}

func TestDemo_OneWorkerProvesNothing(t *testing.T) {
	t.Parallel()
	dsn, conn := database(t)
	cmd, out, errs := demoCommand(t, dsn, "--workers", "1", "--duration", "500ms", "--rounds", "1")
	requireExit(t, 1, cmd.Run(), out, errs)
	require.Contains(t, out.String(), "1. Without a lock no raise was lost, so this run proved nothing.")
	for _, number := range []string{"4", "5"} {
		require.Contains(t, out.String(), "\n"+number+". There was no conflict, so this run proved nothing.")
	}
	// Where nobody else writes, 1, 4 and 5 prove nothing; 6 does if its one reader meets its one writer.
	require.Regexp(t, `Not as expected: [3-9] of \d+ sections\.`, out.String())
	require.NotContains(t, out.String(), "Everything was as expected.")
	require.False(t, schemaExists(t, conn))
}

func TestDemo_InterruptClearsAway(t *testing.T) {
	t.Parallel()
	dsn, conn := database(t)
	cmd, out, _ := demoCommand(t, dsn, "--duration", "1s", "--rounds", "1000")
	cmd.Stderr = nil
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())

	var errs strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		errs.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "1/") {
			require.NoError(t, cmd.Process.Signal(os.Interrupt))
		}
	}
	requireExit(t, 130, cmd.Wait(), out, &errs)
	require.Contains(t, errs.String(), "pgbaton demo: interrupted")
	require.Empty(t, out.String())
	require.False(t, schemaExists(t, conn))
	require.Eventually(t, func() bool {
		var others int
		err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&others)
		return err == nil && others == 0
	}, time.Minute, 10*time.Millisecond, "sessions of workers remain")
}

func TestDemo_LeavesAForeignSchemaAlone(t *testing.T) {
	t.Parallel()
	dsn, conn := database(t)
	_, err := conn.Exec(t.Context(), "CREATE SCHEMA pgbaton_demo")
	require.NoError(t, err)
	cmd, out, errs := demoCommand(t, dsn)
	requireExit(t, 1, cmd.Run(), out, errs)
	require.Contains(t, errs.String(), "that this command did not make")
	require.True(t, schemaExists(t, conn))
}

func TestDemo_OneAtATime(t *testing.T) {
	t.Parallel()
	dsn, conn := database(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	defer pool.Close()
	require.NoError(t, pgbaton.Migrate(t.Context(), pool))
	_, err = conn.Exec(t.Context(), "SELECT pg_advisory_lock(pgbaton.key('pgbaton_demo'))")
	require.NoError(t, err)

	cmd, out, errs := demoCommand(t, dsn)
	requireExit(t, 1, cmd.Run(), out, errs)
	require.Contains(t, errs.String(), "another demo runs in this database")
	require.False(t, schemaExists(t, conn))
}
