package schema_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// The rows say who leads, by terms: what comes late changes nothing.
func TestLeaders_FromSQL(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app, other := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL), testkit.Connect(t, appURL)
	testkit.Exec(t, app, "SELECT pgbaton.enlist(101, 'first')")
	testkit.Exec(t, other, "SELECT pgbaton.enlist(102, 'second')")
	leader := func() string {
		return testkit.Value[string](t, owner,
			"SELECT coalesce((SELECT holder_name || ' ' || term FROM pgbaton.leader_of('x')), 'nobody')")
	}
	require.Equal(t, "nobody", leader())
	testkit.Exec(t, app, "SELECT pgbaton.keep_leaders('{x,y}', '{5,6}', 101, 'first')")
	require.Equal(t, "first 5", leader())
	since := testkit.Value[string](t, owner, "SELECT since::text FROM pgbaton.leader WHERE name = 'x'")

	require.Equal(t, int64(5), testkit.Value[int64](t, other, "SELECT pgbaton.request_resign('x')"))
	require.Equal(t, "x", testkit.Value[string](t, app, "SELECT pgbaton.keep_leaders('{x,y}', '{5,6}', 101, 'first')"))

	testkit.Exec(t, app, "SELECT pgbaton.enlist(103, 'first')") // its session was replaced
	require.Equal(t, "x", testkit.Value[string](t, app, "SELECT pgbaton.keep_leaders('{x,y}', '{5,6}', 103, 'first')"))
	require.Equal(t, since, testkit.Value[string](t, owner, "SELECT since::text FROM pgbaton.leader WHERE name = 'x'"))

	testkit.Exec(t, other, "SELECT pgbaton.keep_leaders('{x}', '{9}', 102, 'second')")
	require.Equal(t, "second 9", leader())
	testkit.Exec(t, app, "SELECT pgbaton.keep_leaders('{x}', '{5}', 101, 'first'), pgbaton.strike_leaders('{x}', '{5}')")
	require.Equal(t, "second 9", leader(), "the older term came late")
	require.Equal(t, int64(0), testkit.Value[int64](t, other, "SELECT count(*) FROM pgbaton.keep_leaders('{x}', '{9}', 102, 'second')"),
		"a request is for one term")

	testkit.Exec(t, other, "SELECT pgbaton.strike_leaders('{x}', '{9}')")
	require.Equal(t, "nobody", leader())
	require.True(t, testkit.Value[bool](t, other, "SELECT pgbaton.request_resign('x') IS NULL"))
	testkit.Exec(t, other, "SELECT pgbaton.keep_leaders('{x}', '{9}', 102, 'second')")
	require.Equal(t, "nobody", leader(), "a term that is over stays so")
	testkit.Exec(t, other, "SELECT pgbaton.keep_leaders('{x}', '{10}', 102, 'second')")
	require.Equal(t, "second 10", leader())

	// The leader's session ends.
	require.NoError(t, other.Close(t.Context()))
	testkit.WaitFor(t, owner, "SELECT NOT EXISTS (SELECT FROM pgbaton.leader_of('x'))")
	require.True(t, testkit.Value[bool](t, owner, "SELECT pgbaton.request_resign('x') IS NULL"))

	for _, arguments := range []string{
		"'{}', '{1}', 1, ''", "'{x,y}', '{1}', 1, ''", "'{\"\"}', '{1}', 1, ''", "'{x}', '{0}', 1, ''",
		"'{NULL}', '{1}', 1, ''", "array[repeat('x', 513)], '{1}', 1, ''", "'{x}', array[1::bigint << 53], 1, ''",
	} {
		requireCode(t, app, "22023", "SELECT pgbaton.keep_leaders("+arguments+")")
	}
}

func TestBeginRun_FromSQL(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	due := func(arguments string) bool {
		return testkit.Value[bool](t, app, "SELECT due FROM pgbaton.begin_run('job', "+arguments+")")
	}
	for range 2 { // who only looks records nothing
		require.True(t, due("'1 hour', NULL"))
	}
	require.True(t, due("'1 hour', 5"))
	require.False(t, due("'1 hour', 6"))
	require.False(t, due("'1 hour', NULL"))
	testkit.Exec(t, owner, "UPDATE pgbaton.last_run SET ran_at = ran_at - interval '1 hour'")
	require.True(t, due("'1 hour', NULL"))
	require.False(t, due("'1 hour', 4"), "the token of a lock that was lost since")
	require.False(t, due("'1 hour', 5"), "one grant is one run")
	require.True(t, due("'1 hour', 6"))
	require.False(t, due("'1 hour', 7"))

	for _, arguments := range []string{
		"'', '1 hour', 1", "NULL, '1 hour', 1", "repeat('x', 513), '1 hour', 1",
		"'a', '0', 1", "'a', '-1 hour', 1", "'a', NULL, 1", "'a', '1 hour', 0", "'a', '1 hour', 1::bigint << 53",
	} {
		requireCode(t, app, "22023", "SELECT pgbaton.begin_run("+arguments+")")
	}
}

// The record of a run is on disk before the run begins; a transaction that waits for a standby goes on to do so.
func TestBeginRun_IsDurable(t *testing.T) {
	t.Parallel()
	_, appURL := newDatabase(t)
	app := testkit.Connect(t, appURL)
	for set, want := range map[string]string{"off": "local", "local": "local", "on": "on", "remote_apply": "remote_apply"} {
		testkit.Exec(t, app, "SET synchronous_commit = '"+set+"'; BEGIN")
		require.True(t, testkit.Value[bool](t, app, "SELECT due FROM pgbaton.begin_run($1, '1 hour', 1)", set))
		require.Equal(t, want, testkit.Value[string](t, app, "SHOW synchronous_commit"))
		testkit.Exec(t, app, "COMMIT")
		require.Equal(t, set, testkit.Value[string](t, app, "SHOW synchronous_commit"))
	}
}
