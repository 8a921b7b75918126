package neighbours

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// newest is the greatest token that can have been drawn.
const newest = "(SELECT pgbaton.next_token() + 31)"

// fences fences the ledger, which must be allowed.
func fences(t *testing.T, conn *pgx.Conn, token int) {
	t.Helper()
	testkit.Exec(t, conn, "SELECT pgbaton.fence('ledger', $1)", token)
}

func TestFence_BelongsToItsService(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, abe, bob, operator := w.connect("ann"), w.connect("abe"), w.connect("bob"), w.connect("operator")
		fences(t, ann, 5)
		fences(t, abe, 6)
		for _, call := range []string{
			"SELECT pgbaton.fence('ledger', " + newest + ")",
			"SELECT pgbaton.fence('ledger', 6, shared => true)",
			"SELECT pgbaton.fence('ledger', 1)", // would tell the newest
		} {
			err := refusal(t, bob, call)
			require.Equal(t, "42501", err.Code)
			require.Contains(t, err.Message, w.fill("fence 'ledger' belongs to the service $anns, and the role $bob does not"))
			require.Contains(t, err.Hint, w.fill("GRANT $anns TO $bobs"))
			require.Contains(t, err.Hint, "pgbaton.assign('fence', 'ledger'")
		}
		for _, level := range []string{"REPEATABLE READ", "SERIALIZABLE"} {
			testkit.Exec(t, bob, "BEGIN ISOLATION LEVEL "+level)
			refused(t, bob, "42501", "SELECT pgbaton.fence('ledger', 6, shared => true)")
			testkit.Exec(t, bob, "ROLLBACK")
		}
		fences(t, ann, 7)

		// Who is a member of both services acts for both, an operator for all, and what the hint says helps.
		fences(t, operator, 8)
		testkit.Exec(t, operator, w.fill("SELECT pgbaton.assign('fence', 'ledger', '$bobs')"))
		fences(t, bob, 9)
		refused(t, ann, "42501", "SELECT pgbaton.fence('ledger', 9)")
		w.run("admin", w.fill("GRANT $bobs TO $ann"))
		fences(t, ann, 9)
		testkit.Exec(t, operator, "SELECT pgbaton.assign('fence', 'ledger', NULL)")
		fences(t, abe, 10)
		fences(t, bob, 10)
		require.False(t, testkit.Value[bool](t, operator, "SELECT pgbaton.assign('fence', 'nothing', NULL)"))
		refused(t, operator, "22023", "SELECT pgbaton.assign('table', 'ledger', NULL)")
	})
}

// The role that counts is that of SET ROLE, and inside of a function of somebody else's it is still the session's.
func TestService_IsTheSessions(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, bob, admin := w.connect("ann"), w.connect("bob"), w.connect("admin")
		service := func(conn *pgx.Conn) string {
			t.Helper()
			return testkit.Value[string](t, conn, "SELECT pgbaton.service()::text")
		}
		require.Equal(t, w.names["anns"], service(ann))
		testkit.Exec(t, ann, w.fill("SET ROLE $anns"))
		require.Equal(t, w.names["anns"], service(ann))
		fences(t, ann, 5)
		testkit.Exec(t, ann, "RESET ROLE")
		fences(t, ann, 6)

		w.run("admin", w.fill(`CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO $bobs, $anns;
			GRANT USAGE ON SCHEMA trap TO PUBLIC`))
		w.run("ann", `CREATE FUNCTION trap.lent(token bigint) RETURNS void LANGUAGE sql SECURITY DEFINER AS
			'SELECT pgbaton.fence(''ledger'', token)'`)
		refused(t, bob, "42501", "SELECT trap.lent(7)") // it runs with ann's rights, and acts for bob
		testkit.Exec(t, admin, w.fill("SET ROLE $bob"))
		require.Equal(t, w.names["bobs"], service(admin))
		refused(t, admin, "42501", "SELECT pgbaton.fence('ledger', 7)")
		testkit.Exec(t, admin, "RESET ROLE")
		require.Equal(t, testkit.Value[string](t, admin, "SELECT current_user::regrole::text"), service(admin),
			"a superuser is a member of every role, and stands for itself")
		fences(t, admin, 7)
		refused(t, w.connect("guest"), "42501", "SELECT pgbaton.service()")
	})
}

// Who maintains a table calls the functions of its owner: not with the operator's rights.
func TestService_IsNotTheMaintainers(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, bob, admin := w.connect("ann"), w.connect("bob"), w.connect("admin")
		fences(t, ann, 5)
		w.run("admin", w.fill("CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO $bobs"))
		testkit.Exec(t, bob, `
CREATE FUNCTION trap.spring(i integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	PERFORM pgbaton.fence('ledger', 9);
	RETURN 1;
EXCEPTION WHEN insufficient_privilege THEN
	RETURN i;
END $$;
CREATE TABLE trap.bait (i integer);
INSERT INTO trap.bait SELECT generate_series(1, 3);
CREATE INDEX sprung ON trap.bait (trap.spring(i));`)
		for _, command := range []string{
			"ANALYZE trap.bait", "VACUUM (FULL) trap.bait", "CLUSTER trap.bait USING sprung", "REINDEX TABLE trap.bait",
			"REINDEX TABLE CONCURRENTLY trap.bait", "VACUUM (ANALYZE) trap.bait",
		} {
			testkit.Exec(t, admin, command)
			require.Equal(t, int64(5), testkit.Value[int64](t, admin, "SELECT token FROM pgbaton.fence WHERE resource = 'ledger'"), command)
		}
		fences(t, ann, 6)
	})
}

func TestJob_BelongsToItsService(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, abe, bob, operator := w.connect("ann"), w.connect("abe"), w.connect("bob"), w.connect("operator")
		const start = "SELECT due FROM pgbaton.start_run('nightly', '1 day', 5, false, false)"
		require.True(t, testkit.Value[bool](t, ann, start))
		testkit.Exec(t, ann, "SELECT pgbaton.end_run('nightly', 5, true, 'password wrong')")
		for _, call := range []string{
			"begin_run('nightly', '1 ms', " + newest + ")", "begin_run('nightly', '1 ms', NULL)",
			"start_run('nightly', '1 ms', " + newest + ", true, true)", "start_run('nightly', '1 ms', NULL, true, true)",
			"end_run('nightly', 5, false, NULL)", "look_run('nightly')", "forget_run('nightly')",
		} {
			err := refusal(t, bob, "SELECT pgbaton."+call)
			require.Equal(t, "42501", err.Code)
			require.Contains(t, err.Message, w.fill("job 'nightly' belongs to the service $anns"), call)
		}
		require.Equal(t, "password wrong", testkit.Value[string](t, abe, "SELECT error FROM pgbaton.look_run('nightly')"))
		require.False(t, testkit.Value[bool](t, abe, "SELECT due FROM pgbaton.begin_run('nightly', '1 day', 6)"))
		testkit.Exec(t, operator, w.fill("SELECT pgbaton.assign('job', 'nightly', '$bobs')"))
		require.True(t, testkit.Value[bool](t, bob, "SELECT pgbaton.forget_run('nightly')"))
	})
}

// Services that lead the same name see their own leaders.
func TestLeader_BelongsToItsService(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, abe, bob := w.connect("ann"), w.connect("abe"), w.connect("bob")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, bob, "SELECT pgbaton.enlist(102, 'bob')")
		testkit.Exec(t, ann, "SELECT pgbaton.keep_leaders('{x}', '{5}', 101, 'ann')")
		leader := func(conn *pgx.Conn) string {
			t.Helper()
			return testkit.Value[string](t, conn, "SELECT coalesce((SELECT holder_name || term FROM pgbaton.leader_of('x')), 'nobody')")
		}
		require.Equal(t, "ann5", leader(abe))
		require.Equal(t, "nobody", leader(bob))
		require.True(t, testkit.Value[bool](t, bob, "SELECT pgbaton.request_resign('x') IS NULL"))
		testkit.Exec(t, bob, "SELECT pgbaton.strike_leaders('{x}', '{5}')")
		refused(t, bob, "42501", "SELECT pgbaton.keep_leaders('{x}', '{9}', 101, 'bob')")
		refused(t, abe, "42501", "SELECT pgbaton.keep_leaders('{x}', '{9}', 101, 'abe')")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(-101, 'ann, behind a pooler')")
		refused(t, bob, "42501", "SELECT pgbaton.keep_leaders('{x}', '{9}', -101, 'bob')")
		testkit.Exec(t, bob, "SELECT pgbaton.keep_leaders('{x}', array["+newest+"], 102, 'bob')")
		require.Equal(t, "ann5", leader(abe))
		require.Zero(t, testkit.Value[int](t, ann, "SELECT count(*) FROM pgbaton.keep_leaders('{x}', '{5}', 101, 'ann')"), "nobody has asked it to resign")
		require.Contains(t, leader(bob), "bob")

		testkit.Exec(t, ann, "SELECT pgbaton.keep_leaders('{x}', '{6}', 101, 'ann')")
		require.Equal(t, "ann6", leader(abe), "a new term, with bob's row being newer")
		require.Equal(t, 6, testkit.Value[int](t, abe, "SELECT pgbaton.request_resign('x')"))
		require.Equal(t, 1, testkit.Value[int](t, ann, "SELECT count(*) FROM pgbaton.keep_leaders('{x}', '{6}', 101, 'ann')"))
	})
}

// What concerns all services is the operator's.
func TestOperator(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		calls := []string{
			"SELECT pgbaton.prune_fences('1 hour')", "SELECT pgbaton.prune('1 hour')", "SELECT pgbaton.assign('fence', 'ledger', NULL)",
			w.fill("SELECT pgbaton.reassign('$anns', '$bobs')"),
		}
		for _, role := range []string{"ann", "guest"} {
			conn := w.connect(role)
			for _, call := range calls {
				refused(t, conn, "42501", call)
			}
			for _, call := range []string{
				"grant_service('$bobs')", "grant_operator('$ann')", "revoke_grants('$bobs')", "apply_grants()", "record_grantee('$ann', true)",
			} {
				refused(t, conn, "42501", "SELECT pgbaton."+w.fill(call))
			}
		}
		for _, role := range []string{"operator", "owner", "admin"} {
			conn := w.connect(role)
			for _, call := range calls {
				testkit.Exec(t, conn, call)
			}
		}
		refused(t, w.connect("operator"), "42501", w.fill("SELECT pgbaton.grant_operator('$ann')"))
		// Even where the right to execute is given by mistake.
		w.run("owner", "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC")
		ann := w.connect("ann")
		for _, call := range calls {
			err := refusal(t, ann, call)
			require.Equal(t, "42501", err.Code)
			require.Contains(t, err.Hint, w.fill("pgbaton.grant_operator('$ann')"))
		}
		for _, call := range []string{"grant_service('$bobs')", "grant_operator('$ann')", "revoke_grants('$bobs')", "apply_grants()"} {
			refused(t, ann, "42501", "SELECT pgbaton."+w.fill(call))
		}
	})
}

// Tokens that cannot have been drawn, texts, counts and windows out of bounds.
func TestBounds(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann := w.connect("ann")
		testkit.Exec(t, ann, "SELECT pgbaton.enlist(101, 'ann')")
		testkit.Exec(t, ann, "SELECT pgbaton.next_token()") // which also puts the sequence at the clock
		const (
			many   = "array(SELECT 'n' || i FROM generate_series(1, 10001) AS i), array(SELECT i FROM generate_series(1, 10001) AS i)"
			future = "(SELECT (extract(epoch FROM clock_timestamp())::bigint - 1577836800 + 3700) * 4096000)"
		)
		for _, call := range []string{
			"fence('ledger', (1::bigint << 53) - 1)", "fence('ledger', (1::bigint << 53) - 1, true)", "fence('ledger', " + future + ")",
			"fence('', 5)", "fence(repeat('x', 10000000), 5)",
			"begin_run('job', '1 day', (1::bigint << 53) - 1)", "start_run('job', '1 day', (1::bigint << 53) - 1, false, false)",
			"start_run('job', '1 day', " + newest + " + 32, false, true)",
			"start_run(repeat('x', 10000000), '1 day', 5, false, false)", "start_run('job', '-1 s', 5, false, false)",
			"start_run('job', '1001 years', 5, false, false)", "begin_run('job', '1001 years', 5)",
			"keep_leaders('{x}', array[" + newest + " + 32], 101, 'ann')", "keep_leaders('{x}', '{5}', 101, repeat('x', 10000000))",
			"keep_leaders(" + many + ", 101, 'ann')",
			"publish_waits(101, '{k}', '{1,2}', '{f}', '{f}', '{0}', '{}', '{}', '{}')",
			"publish_waits(101, '{k}', '{1}', '{f}', '{f}', '{1}', '{}', '{}', '{}')",
			"publish_waits(101, '{k,l}', '{1,2}', '{f,f}', '{f,f}', '{2,-1}', '{1}', '{f}', '{f}')",
			"publish_waits(101, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
		} {
			refused(t, ann, "22023", "SELECT pgbaton."+call)
		}
		testkit.Exec(t, ann, "SELECT pgbaton.fence('ledger', "+newest+"), pgbaton.keep_leaders('{x}', array["+newest+"], 101, 'ann')")
		testkit.Exec(t, ann, "SELECT pgbaton.publish_waits(101, array[repeat('x', 10000000)], '{1}', '{f}', '{f}', '{0}', '{}', '{}', '{}')")
		require.LessOrEqual(t, testkit.Value[int](t, ann, "SELECT max(length(name)) FROM pgbaton.waits()"), 600)
		// A sequence that is ahead of the clock, which was set back, still gives tokens that are accepted.
		w.run("owner", "SELECT setval('pgbaton.token', 9007199254740928)")
		testkit.Exec(t, ann, "SELECT pgbaton.fence('ledger', 9007199254740930)")
		refused(t, ann, "22023", "SELECT pgbaton.fence('ledger', 9007199254740991)")
	})
}

func TestSemaphore_Assign(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, bob, operator := w.connect("ann"), w.connect("bob"), w.connect("operator")
		const open = "SELECT pgbaton.open_semaphore('render', 3)"
		testkit.Exec(t, ann, open)
		refused(t, bob, "42501", open)
		testkit.Exec(t, operator, w.fill("SELECT pgbaton.assign('semaphore', 'render', '$bobs')"))
		testkit.Exec(t, bob, open)
		refused(t, ann, "42501", open)
		testkit.Exec(t, bob, "SELECT pgbaton.fence('ledger', 5), pgbaton.begin_run('nightly', '1 day', 5)")
		require.LessOrEqual(t, int64(3), testkit.Value[int64](t, operator, w.fill("SELECT pgbaton.reassign('$bobs', '$anns')")))
		testkit.Exec(t, ann, open)
		fences(t, ann, 6)
		testkit.Exec(t, ann, "SELECT pgbaton.look_run('nightly')")
		refused(t, bob, "42501", open)
	})
}
