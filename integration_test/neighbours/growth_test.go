package neighbours

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Every table has a primary key, so that a publication FOR ALL TABLES does not stop its writers, and a rule by which it
// shrinks, which is tested here or, for the tables of semaphores and tokens, with those.
func TestTables(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		owner := w.connect("owner")
		require.Empty(t, list(t, owner, `
SELECT c.relname::text FROM pg_class AS c WHERE c.relnamespace = 'pgbaton'::regnamespace AND c.relkind = 'r' AND c.relpersistence = 'p'
   AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)`))
		require.Equal(t, []string{
			"fence", "freeing", "grantee", "holder", "incarnation", "last_run", "leader", "lease", "lease_floor", "lease_share", "lock_client", "lock_engine",
			"registry", "semaphore", "slot",
		}, list(t, owner, "SELECT relname::text FROM pg_class WHERE relnamespace = 'pgbaton'::regnamespace AND relkind = 'r' ORDER BY 1"),
			"a new table needs a rule by which it shrinks, in docs/security.md")
	})
}

func TestGrowth_Prune(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, owner, operator := w.connect("ann"), w.connect("owner"), w.connect("operator")
		const age = "clock_timestamp() - interval '3 days'"
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, ann, "SELECT pgbaton.fence(f, 5) FROM unnest('{old,young,future}'::text[]) AS f")
		testkit.Exec(t, ann, `SELECT pgbaton.start_run(j, w::interval, 5, false, false)
			FROM (VALUES ('old', '1 day'), ('young', '1 day'), ('monthly', '1 month')) AS v (j, w)`)
		testkit.Exec(t, ann, "SELECT pgbaton.keep_leaders('{old,resigned,leads}', '{5,6,7}', 101, 'ann'), pgbaton.strike_leaders('{resigned}', '{6}')")
		testkit.Exec(t, owner, "UPDATE pgbaton.fence SET seen_at = "+age+" WHERE resource = 'old'")
		testkit.Exec(t, owner, "UPDATE pgbaton.fence SET seen_at = clock_timestamp() + interval '1 year' WHERE resource = 'future'")
		testkit.Exec(t, owner, "UPDATE pgbaton.last_run SET ran_at = "+age+" WHERE resource <> 'young'")
		testkit.Exec(t, owner, "UPDATE pgbaton.leader SET since = "+age)
		testkit.Exec(t, owner, "UPDATE pgbaton.leader SET holder = 999 WHERE name = 'old'") // whose session is gone
		testkit.Exec(t, ann, publish, 101, []int64{1}, []int64{2})
		testkit.Exec(t, ann, "SELECT FROM pgbaton.waits(101, 1)")

		pruned := "SELECT string_agg(what || ' ' || pruned, ' ') FROM pgbaton.prune('2 days')"
		require.Equal(t, "fences 1 jobs 1 leaders 2 waits 0", testkit.Value[string](t, operator, pruned))
		require.Equal(t, []string{"future", "young"}, list(t, owner, "SELECT resource FROM pgbaton.fence ORDER BY 1"))
		require.Equal(t, []string{"monthly", "young"}, list(t, owner, "SELECT resource FROM pgbaton.last_run ORDER BY 1"))
		require.Equal(t, []string{"leads"}, list(t, owner, "SELECT name FROM pgbaton.leader"))
		// What claimed the future ages from now on.
		require.True(t, testkit.Value[bool](t, owner, "SELECT max(seen_at) <= clock_timestamp() FROM pgbaton.fence"))
		refused(t, operator, "22023", "SELECT pgbaton.prune('59 minutes')")

		pid := ann.PgConn().PID()
		require.NoError(t, ann.Close(t.Context()))
		testkit.WaitFor(t, operator, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", int64(pid))
		require.Equal(t, "fences 0 jobs 0 leaders 1 waits 2", testkit.Value[string](t, operator, pruned))
		require.Empty(t, list(t, owner, "SELECT name FROM pgbaton.leader"), "which went with it")
	})
}

// What dead sessions have left goes by itself when others use the tables.
func TestGrowth_ByItself(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		owner, abe := w.connect("owner"), w.connect("abe")
		for i := range 20 {
			ann := w.connect("ann")
			testkit.Exec(t, ann, "SELECT pgbaton.enlist($1, 'ann')", 200+i)
			testkit.Exec(t, ann, "SELECT pgbaton.keep_leaders(array['l' || $1::integer], '{5}', $2, 'ann')", i, 200+i)
			testkit.Exec(t, ann, publish, 200+i, []int64{1}, []int64{2})
			testkit.Exec(t, ann, "SELECT FROM pgbaton.waits($1, 1)", 200+i)
			require.NoError(t, ann.Close(t.Context()))
		}
		testkit.Exec(t, owner, "UPDATE pgbaton.leader SET since = clock_timestamp() - interval '31 days'")
		testkit.Exec(t, abe, "SELECT pgbaton.enlist(101, 'abe')")
		testkit.WaitFor(t, owner, "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid::bigint BETWEEN 200 AND 219 AND classid = 0)")
		testkit.Exec(t, abe, publish, 101, []int64{1}, []int64{2})
		for term := range 2 { // a few at a time
			testkit.Exec(t, abe, "SELECT pgbaton.keep_leaders('{l0}', array[$1::bigint], 101, 'abe')", 6+term)
		}
		testkit.Exec(t, abe, "SELECT pgbaton.keep_leaders('{l0}', '{8}', 101, 'abe')")
		require.Equal(t, []int64{1, 0, 1}, testkit.Value[[]int64](t, owner, `SELECT array[(SELECT count(*) FROM pgbaton.registry WHERE kind = 'watched'),
			(SELECT count(*) FROM pgbaton.registry WHERE kind = 'look'), (SELECT count(*) FROM pgbaton.leader)]`))
	})
}

// A service cannot make others read more waits than it may have.
func TestGrowth_WaitsAreBounded(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, bob := w.connect("ann"), w.connect("bob")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, bob, "SELECT pgbaton.enlist(102, 'bob')")
		const many = `SELECT pgbaton.publish_waits($1, array_fill('k'::text, array[$2::integer]), array_fill(1::bigint, array[$2]),
			array_fill(false, array[$2]), array_fill(false, array[$2]), array_fill($3::integer, array[$2]), array_fill(1::bigint, array[$2 * $3]),
			array_fill(false, array[$2 * $3]), array_fill(false, array[$2 * $3]))`
		for range 2 {
			testkit.Exec(t, bob, many, 102, 10000, 0)
		}
		refused(t, bob, "54000", many, 102, 1, 0)
		testkit.Exec(t, ann, many, 101, 999, 1000)
		refused(t, ann, "54000", many, 101, 2, 1000)
		testkit.Exec(t, ann, many, 101, 1, 1000)
		require.Equal(t, 1000, testkit.Value[int](t, ann, "SELECT pgbaton.withdraw_waits(101, NULL)"))
		testkit.Exec(t, ann, many, 101, 2, 1000)
	})
}
