package migrations_test

import (
	"io/fs"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/migrations"
)

// forbidden is what engines lack that speak PostgreSQL's protocol, and what belongs to a session, which a client has none of there.
var forbidden = regexp.MustCompile(`(?i)plpgsql|LANGUAGE\s+(?:[^s]|s[^q])|\btrigger|\bUNLOGGED\b|\bTRUNCATE\b|\bSEQUENCE\b|\bSERIAL\b|\bIDENTITY\b|nextval|advisory|` +
	`\b(?:UN)?LISTEN\b|\bNOTIFY\b|pg_notify|pg_backend_pid|pg_locks|pg_stat_|\bLOCK\s+TABLE\b|\bTEMP(?:ORARY)?\b|\bCURSOR\b|\bDO\s+\$|\bREFERENCES\b|\bpg_sequence`)

var comment = regexp.MustCompile(`(?m)--.*$`)

// The portable set has nothing that it must not have, nor do its statements in comments hide it.
func TestPortable_Words(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations.Portable(), "*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		text, err := fs.ReadFile(migrations.Portable(), name)
		require.NoError(t, err)
		require.Empty(t, forbidden.FindAllString(comment.ReplaceAllString(string(text), ""), -1), name)
	}
	for _, sql := range []string{"LANGUAGE plpgsql", "LANGUAGE c", "CREATE TRIGGER t", "nextval('s')", "pg_try_advisory_xact_lock(1)", "NOTIFY x", "id serial"} {
		require.Regexp(t, forbidden, sql)
	}
}

// golang-migrate and goose take every file at the root of FS.
func TestFS_HasTheFullSetAlone(t *testing.T) {
	t.Parallel()
	entries, err := migrations.FS.ReadDir(".")
	require.NoError(t, err)
	for _, entry := range entries {
		require.False(t, entry.IsDir(), entry.Name())
		require.NotContains(t, entry.Name(), "portable")
	}
	ups, err := fs.Glob(migrations.Portable(), "*.up.sql")
	require.NoError(t, err)
	for _, up := range ups {
		_, err := fs.Stat(migrations.Portable(), strings.Replace(up, ".up.", ".down.", 1))
		require.NoError(t, err)
	}
}
