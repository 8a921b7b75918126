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

		// Nor is it shown whose a lock is of which nothing is published yet, nor by a claim to be another's session.
		testkit.Exec(t, ann, "SELECT pgbaton.join_engine(201, 'session', 'ann', NULL), pg_advisory_lock(77)")
		testkit.Exec(t, bob, "SELECT pgbaton.join_engine(101, 'session', 'bob', NULL)")
		const whose = "SELECT coalesce(client, '?') FROM pgbaton.list_locks() WHERE key = 77"
		require.Equal(t, []string{"ann"}, list(t, abe, whose))
		require.Equal(t, []string{"?"}, list(t, bob, whose))
		require.Equal(t, []string{"ann"}, list(t, operator, whose))
		testkit.Exec(t, ann, "SELECT pg_advisory_unlock(77)")
		require.Equal(t, []string{"anns anns 42", "bobs bobs 42"}, list(t, operator, seen))

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
		const ask = "SELECT pgbaton.request_free($1, 101, 'ann', 'lock', 'k', 42, false, 7, 'why')"
		refused(t, ann, "42501", ask, 1)
		refused(t, ann, "42501", "SELECT pgbaton.settle_free(1, true, true)")
		id := testkit.Value[int64](t, operator, ask, 1)
		require.Equal(t, id, testkit.Value[int64](t, operator, ask, 1), "it is one request")
		const look = "SELECT count(*)::int FROM pgbaton.look_free('{101}')"
		require.Zero(t, testkit.Value[int](t, bob, look))
		require.False(t, testkit.Value[bool](t, bob, "SELECT pgbaton.answer_free($1, true)", id))
		require.Equal(t, 1, testkit.Value[int](t, abe, look), "of the same service: the client's session for rows is another one")
		require.Empty(t, testkit.Value[string](t, operator, "SELECT coalesce(pgbaton.settle_free($1, false, false), '')", id))
		require.True(t, testkit.Value[bool](t, abe, "SELECT pgbaton.answer_free($1, true)", id))
		require.False(t, testkit.Value[bool](t, ann, "SELECT pgbaton.answer_free($1, false)", id), "once")
		require.Equal(t, "freed", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, true)", id), "too late to end anything")
		require.Zero(t, testkit.Value[int](t, abe, look))

		id = testkit.Value[int64](t, operator, ask, 2)
		require.Equal(t, "not answered", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, false)", id))
		require.Zero(t, testkit.Value[int](t, abe, look), "it is withdrawn")
		require.False(t, testkit.Value[bool](t, abe, "SELECT pgbaton.answer_free($1, false)", id))
		require.True(t, testkit.Value[bool](t, abe, "SELECT pgbaton.answer_free($1, true)", id), "it was given back a moment too late")

		// A request that nobody waits for any longer is not carried out.
		id = testkit.Value[int64](t, operator, ask, 3)
		require.Equal(t, 1, testkit.Value[int](t, abe, look))
		testkit.Exec(t, w.connect("owner"), "UPDATE pgbaton.freeing SET asked_at = asked_at - interval '10 s' WHERE id = $1", id)
		require.Zero(t, testkit.Value[int](t, abe, look))

		// A session that no longer has it is not ended, whoever's it is.
		id = testkit.Value[int64](t, operator, ask, 4)
		require.Equal(t, "gone", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, true)", id))
		testkit.Exec(t, ann, "SELECT pg_advisory_lock(42)")

		// The owner of the schema ends sessions if it may.
		id = testkit.Value[int64](t, operator, ask, 5)
		refused(t, operator, "42501", "SELECT pgbaton.settle_free($1, true, true)", id)
		w.run("admin", w.fill("GRANT pg_signal_backend TO $owner"))
		require.Equal(t, "session ended", testkit.Value[string](t, operator, "SELECT pgbaton.settle_free($1, true, true)", id))
		testkit.WaitFor(t, operator, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", int64(ann.PgConn().PID()))
		require.Equal(t, []string{"freed why", "freed why", "gone why", "session ended why"}, list(t, operator,
			"SELECT outcome || ' ' || reason FROM pgbaton.freeings(10) WHERE outcome IS NOT NULL ORDER BY 1"))
		require.Empty(t, list(t, bob, "SELECT 'one' FROM pgbaton.freeings(10)"))
	})
}

// Where everybody may use the schema, a role of no service speaks for itself alone.
func TestFree_OfPublic(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		testkit.Exec(t, w.connect("owner"), "INSERT INTO pgbaton.grantee (role, operator) VALUES ('-', false)") // as from a schema of before there were services
		testkit.Exec(t, w.connect("owner"), "SELECT pgbaton.apply_grants()")
		ann, guest, other := w.connect("ann"), w.connect("guest"), w.connect("guest")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, guest, "SELECT pgbaton.enlist(103, 'guest')")
		for number, holder := range []int64{101, 103} {
			testkit.Exec(t, w.connect("operator"), "SELECT pgbaton.request_free($1, $2, 'client', 'lock', 'k', 42, false, 7, 'why')", number, holder)
		}
		require.Equal(t, []string{"103"}, list(t, other, "SELECT holder::text FROM pgbaton.look_free('{101, 103}')"))
		require.Equal(t, []string{"101"}, list(t, ann, "SELECT holder::text FROM pgbaton.look_free('{101, 103}')"))
	})
}
