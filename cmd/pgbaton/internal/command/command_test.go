package command_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/command"
)

// call runs the command in this process and returns its exit status, stdout and stderr.
func call(t *testing.T, env map[string]string, args ...string) (status int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = command.Execute(t.Context(), args, command.Streams{
		In: strings.NewReader(""), Out: &stdout, Err: &stderr,
		Getenv: func(name string) string { return env[name] },
	})
	return status, stdout.String(), stderr.String()
}

// nowhere is a database that is not there.
var nowhere = map[string]string{"DATABASE_URL": "postgres://u:hush@127.0.0.1:1/d"}

func TestUsage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args   []string
		env    map[string]string
		status int
		says   string
	}{
		"Nothing":          {nil, nil, 2, "Usage:"},
		"Unknown":          {[]string{"frobnicate"}, nil, 2, `there is no command "frobnicate"`},
		"URLAsCommand":     {[]string{"postgres://u:hush@h/d"}, nil, 2, "there is no command"},
		"UnknownFlag":      {[]string{"doctor", "--databse-url=postgres://u:hush@h/d"}, nil, 2, "unknown flag: --databse-url"},
		"FlagValue":        {[]string{"doctor", "--ttl", "password=hush"}, nil, 2, `for "--ttl"`},
		"NoDatabase":       {[]string{"doctor"}, nil, 2, "no database is given"},
		"MalformedURL":     {[]string{"doctor", "--database-url", "postgres://u:hush/hush@h:5432/d"}, nil, 2, "the database cannot be read"},
		"Argument":         {[]string{"doctor", "postgres://u:hush@h/d"}, nil, 2, "takes 0 arguments, not 1"},
		"RunNothing":       {[]string{"run"}, nil, 125, "KEY is missing"},
		"RunNoDash":        {[]string{"run", "k", "sleep", "1"}, nil, 125, "the command comes behind --"},
		"RunNoCommand":     {[]string{"run", "k"}, nil, 125, "the command is missing"},
		"RunEmptyCommand":  {[]string{"run", "k", "--"}, nil, 125, "the command is missing"},
		"RunTwoKeys":       {[]string{"run", "k", "l", "--", "true"}, nil, 125, "there is more than KEY before --"},
		"RunNoKey":         {[]string{"run", "--", "true"}, nil, 125, "KEY is missing"},
		"RunTryAndWait":    {[]string{"run", "k", "--try", "--wait", "1s", "--", "true"}, nowhere, 125, "[try wait]"},
		"RunSharedOnce":    {[]string{"run", "k", "--shared", "--once", "1h", "--", "true"}, nowhere, 125, "[shared semaphore once]"},
		"RunNoTime":        {[]string{"run", "k", "--wait", "0s", "--", "true"}, nowhere, 125, "give a time above 0"},
		"RunPermits":       {[]string{"run", "k", "--permits", "2", "--", "true"}, nowhere, 125, "--permits needs --semaphore"},
		"RunSemaphore":     {[]string{"run", "k", "--semaphore", "0", "--", "true"}, nowhere, 125, "the least is 1"},
		"RunStatus":        {[]string{"run", "k", "-E", "256", "--", "true"}, nowhere, 125, "give 0 to 255"},
		"RunBadID":         {[]string{"run", "id:x", "--", "true"}, nowhere, 125, "name:id:x"},
		"RunBadPair":       {[]string{"run", "pair:1", "--", "true"}, nowhere, 125, "no pair of integers"},
		"RunNotFound":      {[]string{"run", "k", "--", "there-is-no-such-program"}, nowhere, 127, "cannot run there-is-no-such-program"},
		"RunNotExecutable": {[]string{"run", "k", "--", "/"}, nowhere, 126, "cannot run /"},
		"RunServerAway":    {[]string{"run", "k", "--", "true"}, nowhere, 125, "127.0.0.1:1"},
		"LeadServerAway":   {[]string{"lead", "k", "--", "true"}, nowhere, 125, "127.0.0.1:1"},
		"WaitServerAway":   {[]string{"wait", "k"}, nowhere, 1, "127.0.0.1:1"},
		"DemoServerAway":   {[]string{"demo"}, nowhere, 1, "cannot connect to PostgreSQL at 127.0.0.1:1: "},
		"DemoWorkers":      {[]string{"demo", "--workers", "65"}, nowhere, 2, "workers must be 1 to 64, not 65"},
		"DemoVariable":     {[]string{"demo"}, map[string]string{"DEMO_WORKERS": "x"}, 2, `DEMO_WORKERS is "x", not a number`},
		"DemoDuration":     {[]string{"demo", "--duration", "1ms"}, nowhere, 2, "duration must be at least 100ms"},
		"DemoRounds":       {[]string{"demo", "--rounds", "0"}, nowhere, 2, "rounds must be 1 to 1000"},
		"DemoWork":         {[]string{"demo", "--work", "-1s"}, nowhere, 2, "work must not be negative"},
		"DemoByHand":       {[]string{"demo-worker"}, nil, 2, "not by hand"},
		"Semaphore":        {[]string{"semaphore"}, nil, 2, "say which of its commands: create, ls, resize"},
		"Capacity":         {[]string{"semaphore", "create", "s", "x"}, nowhere, 2, "give a number from 1 on"},
		"Age":              {[]string{"fence", "prune", "soon"}, nowhere, 2, "no time such as 36h or 30d"},
		"Version":          {[]string{"migrate", "down", "x"}, nowhere, 2, "no version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			status, out, errs := call(t, c.env, c.args...)
			require.Equal(t, c.status, status, errs)
			require.Empty(t, out)
			require.Contains(t, errs, c.says)
			require.NotContains(t, errs, "hush")
		})
	}
}

// TestHelp_Teaches: each command says what it is for, has an example of itself, and explains its flags.
func TestHelp_Teaches(t *testing.T) {
	t.Parallel()
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" || cmd.HasParent() && cmd.Parent().Name() == "completion" {
			return
		}
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		require.NotEmpty(t, cmd.Long, cmd.CommandPath())
		require.Contains(t, cmd.Example, cmd.CommandPath(), cmd.CommandPath())
		for line := range strings.Lines(cmd.Long + "\n" + cmd.Example) {
			require.LessOrEqual(t, len(line), 140, line)
		}
		for _, sub := range cmd.Commands() {
			check(sub)
		}
	}
	check(command.Tree())
	for _, help := range [][]string{{"help"}, {"-h"}, {"--help"}, {"run", "--help"}, {"help", "migrate", "engine"}} {
		status, out, errs := call(t, nil, help...)
		require.Zero(t, status)
		require.Empty(t, errs)
		require.Contains(t, out, "Usage:")
		require.NotContains(t, out, "demo-worker")
	}
}

func TestHelp_NoPassword(t *testing.T) {
	t.Parallel()
	status, out, _ := call(t, nowhere, "demo", "--help")
	require.Zero(t, status)
	require.Contains(t, out, "--workers")
	require.NotContains(t, out, "hush")
}

func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		status, out, errs := call(t, nil, "completion", shell)
		require.Zero(t, status, errs)
		require.Contains(t, out, "pgbaton")
	}
	status, out, _ := call(t, nil, "__complete", "migrate", "engine", "")
	require.Zero(t, status)
	require.Contains(t, out, "session\nlease\nboth\n")
}

func TestMigrateSQL(t *testing.T) {
	t.Parallel()
	status, out, _ := call(t, nil, "migrate", "sql")
	require.Zero(t, status)
	require.True(t, strings.HasPrefix(out, "-- 000001_foundation.up.sql\nBEGIN;\n"), out[:60])
	require.Contains(t, out, "CREATE SCHEMA pgbaton;")
	_, down, _ := call(t, nil, "migrate", "sql", "--down", "--to", "1")
	require.True(t, strings.HasSuffix(strings.TrimSpace(down), "COMMIT;"))
	require.Contains(t, down, "-- 000002_bump_version.down.sql")
	require.NotContains(t, down, "000001_foundation.down.sql")
	_, later, _ := call(t, nil, "migrate", "sql", "--from", "1", "--to", "2")
	require.Equal(t, 1, strings.Count(later, "BEGIN;\n\n"))
	_, portable, _ := call(t, nil, "migrate", "sql", "--portable")
	require.Contains(t, portable, "-- 000001_portable.up.sql")
	status, _, errs := call(t, nil, "migrate", "sql", "--from", "3", "--to", "2")
	require.Equal(t, 2, status)
	require.Contains(t, errs, "nothing from version 3 to 2")
}
