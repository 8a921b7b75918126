package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain lets the test binary be with-postgres itself, in a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("WITH_POSTGRES_TEST_RUN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func withPostgres(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "WITH_POSTGRES_TEST_RUN=1")
	return cmd
}

func TestWithPostgres_GivesADatabaseAndTheStatus(t *testing.T) {
	t.Parallel()
	out, err := withPostgres("-quiet", "--", "sh", "-c", `echo "$DATABASE_URL"; exit 7`).Output()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 7, exit.ExitCode())
	require.Regexp(t, `^postgres(ql)?://.*/pgbaton_`, string(out))
}

func TestWithPostgres_TellsWhyACommandDidNotRun(t *testing.T) {
	t.Parallel()
	cmd := withPostgres("-quiet", "--", "/no/such/command")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	require.Equal(t, statusNotFound, exit.ExitCode())
	require.Contains(t, stderr.String(), "/no/such/command")
}

func TestWithPostgres_PassesSignalsOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		signal syscall.Signal
		status int
	}{
		"the command handles it": {`trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done`, syscall.SIGTERM, 3},
		"the command dies of it": {`echo ready; exec sleep 30`, syscall.SIGHUP, 128 + int(syscall.SIGHUP)},
		"no terminal, an interrupt": {
			`trap 'echo got it; exit 4' INT; echo ready; while :; do sleep 0.05; done`, syscall.SIGINT, 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := withPostgres("-quiet", "--", "sh", "-c", c.script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // away from the terminal of whoever runs the test
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			ready := make([]byte, len("ready\n"))
			_, err = out.Read(ready)
			require.NoError(t, err)
			require.Equal(t, "ready", strings.TrimSpace(string(ready)))

			require.NoError(t, cmd.Process.Signal(c.signal))
			begin := time.Now()
			var exit *exec.ExitError
			require.ErrorAs(t, cmd.Wait(), &exit)
			require.Equal(t, c.status, exit.ExitCode())
			require.Less(t, time.Since(begin), time.Minute, "it waits for what does not end")
		})
	}
}
