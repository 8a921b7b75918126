package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/cli"
)

// call runs the command in this process and returns its exit status, stdout and stderr.
func call(t *testing.T, env map[string]string, args ...string) (int, string, string) {
	t.Helper()
	var out, errs bytes.Buffer
	status := run(t.Context(), args, cli.Streams{
		In: strings.NewReader(""), Out: &out, Err: &errs,
		Getenv: func(name string) string { return env[name] },
	})
	return status, out.String(), errs.String()
}

func TestRun_Usage(t *testing.T) {
	t.Parallel()

	status, out, errs := call(t, nil)
	require.Equal(t, exitUsage, status)
	require.Empty(t, out)
	require.Contains(t, errs, "Usage: pgbaton COMMAND")

	status, _, errs = call(t, nil, "frobnicate")
	require.Equal(t, exitUsage, status)
	require.Contains(t, errs, `there is no command "frobnicate"`)

	for _, help := range []string{"help", "-h", "--help"} {
		status, out, errs = call(t, nil, help)
		require.Equal(t, exitOK, status)
		require.Contains(t, out, "demo ")
		require.NotContains(t, out, "demo-worker")
		require.Empty(t, errs)
	}
}

func TestRun_DemoHelp(t *testing.T) {
	t.Parallel()
	status, out, errs := call(t, map[string]string{"DATABASE_URL": "postgres://u:hush@h/d"}, "demo", "-h")
	require.Equal(t, exitOK, status)
	require.Empty(t, errs)
	for _, name := range []string{"-database", "-workers", "-duration", "-rounds", "-work", "DATABASE_URL", "DEMO_WORKERS"} {
		require.Contains(t, out, name)
	}
	require.NotContains(t, out, "hush")
}

func TestRun_DemoFlagErrors(t *testing.T) {
	t.Parallel()
	const dsn = "postgres://u:hush@127.0.0.1:1/d"
	for name, tt := range map[string]struct {
		env  map[string]string
		args []string
		want string
	}{
		"NoDatabase":       {nil, nil, "DATABASE_URL='postgres://"},
		"UnknownFlag":      {nil, []string{"-databse=" + dsn}, "flag provided but not defined: -databse"},
		"Argument":         {nil, []string{dsn}, "takes flags only"},
		"WorkersNoNumber":  {nil, []string{"-workers", "x"}, `invalid value "x" for flag -workers`},
		"WorkersTooFew":    {nil, []string{"-workers", "0"}, "workers must be 1 to 64, not 0"},
		"WorkersTooMany":   {nil, []string{"-workers", "65"}, "workers must be 1 to 64, not 65"},
		"VariableNoNumber": {map[string]string{"DEMO_WORKERS": "x"}, nil, `DEMO_WORKERS is "x", not a number`},
		"VariableTooFew":   {map[string]string{"DEMO_WORKERS": "-1"}, nil, "workers must be 1 to 64, not -1"},
		"Duration":         {nil, []string{"-duration", "1ms"}, "duration must be at least 100ms"},
		"Rounds":           {nil, []string{"-rounds", "0"}, "rounds must be 1 to 1000"},
		"Work":             {nil, []string{"-work", "-1s"}, "work must not be negative"},
		"DatabaseMalformed": {
			nil, []string{"-database", "postgres://u:hush/hush@h:5432/d"}, "the database URL cannot be read",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, out, errs := call(t, tt.env, append([]string{"demo"}, tt.args...)...)
			require.Equal(t, exitUsage, status)
			require.Empty(t, out)
			require.Contains(t, errs, tt.want)
			require.Contains(t, errs, `Run "pgbaton demo -h"`)
			require.NotContains(t, errs, "hush")
		})
	}
}

func TestRun_ServerAway(t *testing.T) {
	t.Parallel()
	status, out, errs := call(t, map[string]string{"DATABASE_URL": "postgres://u:hush@127.0.0.1:1/d"}, "demo")
	require.Equal(t, exitFailed, status)
	require.Empty(t, out)
	require.Contains(t, errs, "cannot connect to PostgreSQL at 127.0.0.1:1: ")
	require.Contains(t, errs, "refused")
	require.NotContains(t, errs, "hush")
}

func TestRun_WorkerByHand(t *testing.T) {
	t.Parallel()
	status, _, errs := call(t, nil, "demo-worker")
	require.Equal(t, exitUsage, status)
	require.Contains(t, errs, "not by hand")
}
