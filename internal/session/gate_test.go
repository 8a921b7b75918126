package session

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// What the client calls by itself a service may call, and the newest migration is the one that the client was written for.
func TestOurs(t *testing.T) {
	t.Parallel()
	conn := testkit.Connect(t, testkit.Migrated(t))
	for _, name := range strings.Split(ours, ",") {
		require.Equal(t, 1, testkit.Value[int](t, conn,
			"SELECT count(*)::int FROM pgbaton.function_sets() AS f WHERE f.name = $1 AND f.set IN ('everybody', 'service')", name), name)
	}
	require.Equal(t, ClientVersion, testkit.Value[int](t, conn, "SELECT version FROM pgbaton.schema_version()"))
}
