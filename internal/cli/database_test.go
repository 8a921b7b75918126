package cli_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/cli"
)

func noVariable(string) string { return "" }

func TestDatabase_FlagBeforeVariable(t *testing.T) {
	t.Parallel()
	variable := func(string) string { return "postgres://u@fromenv:1111/d" }

	config, err := cli.Database("", variable)
	require.NoError(t, err)
	require.Equal(t, "fromenv", config.ConnConfig.Host)

	config, err = cli.Database("postgres://u@fromflag:2222/d", variable)
	require.NoError(t, err)
	require.Equal(t, "fromflag", config.ConnConfig.Host)
}

func TestDatabase_NeverRepeatsThePassword(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://u:hush%zz@h/d",
		"postgres://u:hush/x@h:5432/d",
		"postgres://u:hush@h:port/d",
		"postgres://u:hush hush@h/d",
		"postgres//u:hush@h/d",
		"host=h password=hush port=x",
		"host=h password = 'hush hush' port=x",
		"password='hush",
		"postgres://u:hush@h/d?pool_max_conns=hush",
		"postgres://u:hush@h/d?sslmode=verify-full&sslrootcert=/nonexistent/ca.pem",
	} {
		_, err := cli.Database(dsn, noVariable)
		var usage *cli.UsageError
		require.ErrorAs(t, err, &usage, dsn)
		require.NotContains(t, err.Error(), "hush", dsn)
	}
}

func TestConnect_SaysWhereAndWhy(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string]string{
		"postgres://u:hush@127.0.0.1:1/d":             "cannot connect to PostgreSQL at 127.0.0.1:1: connect: connection refused",
		"postgres://u:hush@127.0.0.1:1,127.0.0.1:2/d": "cannot connect to PostgreSQL at 127.0.0.1:1, 127.0.0.1:2: connect: ",
		"postgres://u:hush@nowhere.invalid:5432/d":    "cannot connect to PostgreSQL at nowhere.invalid:5432: ",
		"host=/nonexistent user=u password=hush":      "cannot connect to PostgreSQL at /nonexistent:5432: ",
	} {
		config, err := cli.Database(dsn, noVariable)
		require.NoError(t, err)
		_, err = cli.Connect(t.Context(), config)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "hush")
	}
}

func TestExplain_LeavesOtherErrors(t *testing.T) {
	t.Parallel()
	err := errors.New("another")
	require.Equal(t, err, cli.Explain(err))
}
