package neighbours

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

const publishLock = `SELECT (pgbaton.publish_locks($1, $2, ARRAY[$3::bigint], $4, 'here', 7, 0, false, false, '{}', ARRAY[$3::bigint], '{t}', '{lock}',
	ARRAY[$4::text], '{42}', '{f}', '{f}', '{1}', '{0}', '{0}'))[1]`

// A service sees its own by name, an operator and a role with SELECT on the view see all; nobody speaks for another's session.
func TestLocks_BelongToTheirService(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, abe, bob, operator, owner := w.connect("ann"), w.connect("abe"), w.connect("bob"), w.connect("operator"), w.connect("owner")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, bob, "SELECT pgbaton.enlist(102, 'bob')")
		row := testkit.Value[int64](t, ann, publishLock, 1, 1, 101, "anns")
		testkit.Value[int64](t, bob, publishLock, 2, 1, 102, "bobs")
		testkit.Value[int64](t, w.connect("bea"), publishLock, 3, 1, 101, "made up") // in the name of another's session

		const seen = "SELECT coalesce(name, '?') || ' ' || coalesce(client, '?') || ' ' || key FROM pgbaton.list_locks() ORDER BY 1"
		require.Equal(t, []string{"? ? 42", "anns anns 42"}, list(t, ann, seen))
		require.Equal(t, []string{"? ? 42", "anns anns 42"}, list(t, abe, seen))
		require.Equal(t, []string{"? ? 42", "bobs bobs 42"}, list(t, bob, seen))
		require.Equal(t, []string{"anns anns 42", "bobs bobs 42"}, list(t, operator, seen))
		require.Empty(t, list(t, bob, "SELECT 'one' FROM pgbaton.list_locks() WHERE holder = 101"), "whose it is")

		// What another has published stays, whatever it is called.
		testkit.Exec(t, bob, `SELECT pgbaton.publish_locks(1, 2, '{}', '', '', 7, 0, true, true, $1, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')`, []int64{row})
		require.Equal(t, []string{"anns anns 42", "bobs bobs 42"}, list(t, operator, seen))

		// The documented grants of a monitoring system.
		guest := w.connect("guest")
		refused(t, guest, "42501", "SELECT FROM pgbaton.locks")
		testkit.Exec(t, owner, w.fill("GRANT USAGE ON SCHEMA pgbaton TO $guest; GRANT SELECT ON pgbaton.locks TO $guest"))
		require.Equal(t, []string{"anns", "bobs"}, list(t, guest, "SELECT name FROM pgbaton.locks ORDER BY 1"))
		refused(t, guest, "42501", "SELECT FROM pgbaton.registry")
		refused(t, guest, "42501", "SELECT FROM pgbaton.list_locks()")
		testkit.Exec(t, owner, "SELECT pgbaton.apply_grants()")
		require.Equal(t, []string{"anns", "bobs"}, list(t, guest, "SELECT name FROM pgbaton.locks ORDER BY 1"), "they stay")
	})
}

// Operators ask, and the service of the holder answers.
func TestFree_IsForOperators(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, abe, bob, operator := w.connect("ann"), w.connect("abe"), w.connect("bob"), w.connect("operator")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		const ask = "SELECT pgbaton.request_free(101, 'ann', 'lock', 'k', 42, false, 7, 'why')"
		refused(t, ann, "42501", ask)
		refused(t, ann, "42501", "SELECT pgbaton.settle_free(1, true, true)")
		id := testkit.Value[int64](t, operator, ask)
		const look = "SELECT count(*)::int FROM pgbaton.look_free('{101}')"
		require.Zero(t, testkit.Value[int](t, bob, look))
		require.False(t, testkit.Value[bool](t, bob, "SELECT pgbaton.answer_free($1, true)", id))
		require.Equal(t, 1, testkit.Value[int](t, abe, look), "of the same service: the client's session for rows is another one")
		require.Empty(t, testkit.Value[string](t, operator, "SELECT coalesce(pgbaton.settle_free($1, false, false), '')", id))
		require.True(t, testkit.Value[bool](t, abe, "SELECT pgbaton.answer_free($1, true)", id))
		require.False(t, testkit.Value[bool](t, ann, "SELECT pgbaton.answer_free($1, false)", id), "once")
		require.Equal(t, "freed", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, true)", id), "too late to end anything")
		require.Zero(t, testkit.Value[int](t, abe, look))

		id = testkit.Value[int64](t, operator, ask)
		require.Equal(t, "not answered", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, false)", id))
		require.Zero(t, testkit.Value[int](t, abe, look), "it is withdrawn")

		// The owner of the schema ends sessions if it may.
		id = testkit.Value[int64](t, operator, ask)
		refused(t, operator, "42501", "SELECT pgbaton.settle_free($1, true, true)", id)
		w.run("admin", w.fill("GRANT pg_signal_backend TO $owner"))
		require.Equal(t, "session ended", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, true)", id))
		testkit.WaitFor(t, operator, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", int64(ann.PgConn().PID()))
		require.Equal(t, []string{"freed why", "not answered why", "session ended why"}, list(t, operator,
			"SELECT outcome || ' ' || reason FROM pgbaton.freeings(10) ORDER BY 1"))
		require.Empty(t, list(t, bob, "SELECT 'one' FROM pgbaton.freeings(10)"))
	})
}
