package ground

import (
	"testing"
	"time"

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
			time.Sleep(200 * time.Millisecond) // the connection that has looked whether the pooler is there is gone
			for range c.others {
				testkit.Exec(t, testkit.Connect(t, through), "SELECT 1")
			}
			_, err := pgbaton.Open(t.Context(), through, &pgbaton.Config{SessionPooler: true})
			require.ErrorContains(t, err, c.says)
			t.Log(err)
		})
	}
}
