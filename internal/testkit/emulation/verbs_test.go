package emulation

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVerbOf(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]verb{
		"SELECT 1": works, "  select 1": works, "(SELECT 1)": works, "WITH x AS (SELECT 1) SELECT": works, "-- a\n/* b */ UPDATE t": works,
		"begin": begins, "START TRANSACTION": begins, "commit;": commits, "END": commits, "rollback": aborts, "ABORT": aborts,
		"ROLLBACK TO s": sets, "ROLLBACK TO SAVEPOINT s": sets, "ROLLBACK TRANSACTION": aborts, "ROLLBACK WORK TO s": sets,
		"SET x = 1": sets, "-- ping": sets, "": sets, "VACUUM": sets, "CREATE DATABASE d": sets, "CREATE TABLE d ()": works,
	} {
		require.Equal(t, want, verbOf(sql), sql)
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string][]string{
		"": {""}, "SELECT 1": {"SELECT 1"}, "a;b": {"a", "b"}, "a;b; ": {"a", "b"}, ";": {""}, "a;-- b": {"a"},
		"SELECT ';'; b":                       {"SELECT ';'", " b"},
		`SELECT ";" || 'it''s;' ; b`:          {`SELECT ";" || 'it''s;' `, " b"},
		"a -- ;\n; b /* ; */":                 {"a -- ;\n", " b /* ; */"},
		"DO $$ BEGIN a; END $$; b":            {"DO $$ BEGIN a; END $$", " b"},
		"DO $x$ $$;$$; $y$ $x$; b":            {"DO $x$ $$;$$; $y$ $x$", " b"},
		"SELECT $1; SELECT $2::text || $3; b": {"SELECT $1", " SELECT $2::text || $3", " b"},
		"SELECT 'never ends; b":               {"SELECT 'never ends; b"}, "SELECT $$; b": {"SELECT $$; b"},
	} {
		require.Equal(t, want, split(sql), sql)
	}
}

func TestMarked(t *testing.T) {
	t.Parallel()
	failing := func(text string) []byte {
		return append([]byte("SERROR\x00C42883\x00Mfunction "+text+" does not exist\x00"), 0)
	}
	require.True(t, marked(failing("pg_catalog."+marker+"()")))
	require.False(t, marked(failing("f()")))
	require.False(t, marked(append([]byte("SERROR\x00"), 0)))
	require.False(t, marked(body(conflict())))
}
