package ground

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A pooler that has no room is named, and what to raise.
func TestPooler_Full(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings []string
		others   int // connections that others have, each in a session
		says     string
	}{
		"PoolTaken":     {[]string{"default_pool_size = 2", "query_wait_timeout = 1"}, 2, "the connection pooler's pool is full"},
		"PoolOfOne":     {[]string{"default_pool_size = 1"}, 0, "no server connection to a second client"},
		"ClientsAtMost": {[]string{"max_client_conn = 2"}, 2, "the connection pooler takes no more clients"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			through := lab.PgBouncer(t, lab.Database(t), "session", c.settings...)
			for range c.others {
				occupy(t, through)
			}
			_, err := pgbaton.Open(t.Context(), through, &pgbaton.Config{SessionPooler: true})
			require.ErrorContains(t, err, c.says)
			t.Log(err)
		})
	}
}

// occupy takes a place at the pooler, and on one of its server connections, until the test ends. It asks again until it has them:
// the place may still be the one of the connection that has looked whether the pooler is there, and a slow server takes longer to give a
// connection than the pooler lets a client wait.
func occupy(t *testing.T, through string) {
	t.Helper()
	testkit.Eventually(t, "the pooler gives a place", func() bool {
		conn, err := pgx.Connect(t.Context(), through)
		if err != nil {
			return false
		}
		if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil {
			_ = conn.Close(t.Context())
			return false
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return true
	})
}
