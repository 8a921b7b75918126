package schema_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

func requireCode(t *testing.T, conn *pgx.Conn, code, sql string) {
	t.Helper()
	_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr, sql)
	require.Equal(t, code, pgErr.Code, sql)
}

// A role with the documented grants fences from plain SQL.
func TestFence_FromSQL(t *testing.T) {
	t.Parallel()
	_, appURL := newDatabase(t)
	app := testkit.Connect(t, appURL)
	testkit.Exec(t, app, "BEGIN; SELECT pgbaton.fence('ledger', 9); COMMIT")
	requireCode(t, app, "PB001", "SELECT pgbaton.fence('ledger', 5)")
	requireCode(t, app, "PB001", "SELECT pgbaton.fence('ledger', 5, shared => true)")
	testkit.Exec(t, app, "SELECT pgbaton.fence('ledger', 10, shared => true), pgbaton.fence('ledger', 9)")
	// A lock taken in SQL shares its fence with AssertHeld.
	testkit.Exec(t, app, `SELECT pgbaton.fence('pgbaton:key:' || pgbaton.key('invoice/42'),
		pgbaton.lock_for_transaction(pgbaton.key('invoice/42'), false, false, NULL))`)

	for _, arguments := range []string{"'', 1", "NULL, 1", "repeat('x', 513), 1", "'a', 0", "'a', -1", "'a', NULL", "'a', 1::bigint << 53"} {
		requireCode(t, app, "22023", "SELECT pgbaton.fence("+arguments+")")
	}
	requireCode(t, app, "42501", "SELECT FROM pgbaton.fence")
}

func TestFence_Prune(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app, busy := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL), testkit.Connect(t, appURL)
	const prune = "SELECT pgbaton.prune_fences('1 day')"
	testkit.Exec(t, app, "SELECT pgbaton.fence(r, 9) FROM unnest('{old,young,busy,shared}'::text[]) AS r")
	require.Zero(t, testkit.Value[int64](t, owner, prune))
	testkit.Exec(t, owner, "UPDATE pgbaton.fence SET seen_at = seen_at - interval '25 hours' WHERE resource <> 'young'")

	// Who fences now keeps the row, though its transaction has not ended.
	testkit.Exec(t, busy, "BEGIN; SELECT pgbaton.fence('busy', 9), pgbaton.fence('shared', 9, shared => true)")
	require.Equal(t, int64(1), testkit.Value[int64](t, owner, prune))
	testkit.Exec(t, busy, "COMMIT")
	require.Equal(t, int64(1), testkit.Value[int64](t, owner, prune), "a shared token was not recorded")
	require.Equal(t, []string{"busy", "young"}, testkit.Value[[]string](t, owner, "SELECT array_agg(resource ORDER BY resource) FROM pgbaton.fence"))
	testkit.Exec(t, app, "SELECT pgbaton.fence('old', 5)")

	for _, age := range []string{"'59 min'", "'-1 day'", "NULL"} {
		requireCode(t, owner, "22023", "SELECT pgbaton.prune_fences("+age+")")
	}
}

// Every update of a fence's row is a HOT one: it needs no index entry. The same token again updates nothing.
func TestFence_UpdatesInPlace(t *testing.T) {
	t.Parallel()
	ownerURL, _ := newDatabase(t)
	conn := testkit.Connect(t, ownerURL)
	testkit.Exec(t, conn, "BEGIN")
	for token := range 50 {
		_, err := conn.Exec(t.Context(), "SELECT pgbaton.fence('ledger', $1), pgbaton.fence('ledger', $1)", token+1)
		require.NoError(t, err)
	}
	const sqlUpdates = "SELECT array[n_tup_upd, n_tup_hot_upd] FROM pg_stat_xact_user_tables WHERE relid = 'pgbaton.fence'::regclass"
	require.Equal(t, []int64{49, 49}, testkit.Value[[]int64](t, conn, sqlUpdates))
}
