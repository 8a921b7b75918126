package poolers

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// occupy takes the only server connection of a pooler until the returned func is called. It asks again until it has it: the place may
// still be that of the connection which has looked whether the pooler is there.
func occupy(t *testing.T, through string) func() {
	t.Helper()
	var conn *pgx.Conn
	testkit.Eventually(t, "the pooler gives its place", func() (taken bool) {
		var err error
		if conn, err = pgx.Connect(t.Context(), through); err != nil {
			return false
		}
		if _, err = conn.Exec(t.Context(), "BEGIN"); err != nil {
			_ = conn.Close(context.Background())
		}
		return err == nil
	})
	leave := func() { _ = conn.Close(context.Background()) }
	t.Cleanup(leave)
	return leave
}

// A pooler without a free server connection keeps a call waiting until the caller's context ends. Nothing is left of the call, and the
// same pool serves the next one when there is room.
func TestFull_WaitEndsWithContext(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	schemaOf(t, dsn)
	through := testkit.With(t, lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 1"), "default_query_exec_mode", "exec")
	pool := onePool(t, through, 4)
	defer pool.Close()
	leave := occupy(t, through)
	for _, op := range operations {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := op.run(ctx, pool)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, op.name)
	}
	leave()
	tallies := make([]tally, len(operations))
	for i, op := range operations {
		err := op.run(t.Context(), pool)
		require.NoError(t, err, op.name)
		tallies[i].count(op, err)
	}
	requireCounts(t, dsn, tallies)
}

// Where the pooler itself ends the wait, or refuses the client, the error says that the pooler is full and what to raise.
func TestFull_PoolerSaysSo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings []string
		says     string
	}{
		"PoolTaken":     {[]string{"default_pool_size = 1", "query_wait_timeout = 1"}, "the connection pooler's pool is full"},
		"ClientsAtMost": {[]string{"max_client_conn = 1"}, "the connection pooler takes no more clients"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			schemaOf(t, dsn)
			through := testkit.With(t, lab.PgBouncer(t, dsn, "transaction", c.settings...), "default_query_exec_mode", "exec")
			pool := onePool(t, through, 4)
			defer pool.Close()
			leave := occupy(t, through)
			for _, op := range operations {
				if op.name == "UpdateVersion" { // it begins with a statement of the test's own
					continue
				}
				err := op.run(t.Context(), pool)
				require.ErrorContains(t, err, c.says, op.name)
				t.Log(err)
			}
			leave()
			testkit.Eventually(t, "the pooler has room again", func() bool { return operations[0].run(t.Context(), pool) == nil })
		})
	}
}
