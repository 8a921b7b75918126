package schema_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	otherEngine = "PB002"
	notNow      = "55000"
	inUse       = "55006"
	taken       = "23505"
)

// both asks for a lock that is a lease and an advisory lock, and returns its token, 0 for none.
func (l *leaseTown) both(holder int64, pair, shared bool) int64 {
	l.t.Helper()
	return testkit.Value[int64](l.t, l.Conn, `SELECT coalesce((SELECT token FROM pgbaton.acquire_leases(
		$1, 60000, '{1}', ARRAY[$2::boolean], ARRAY[$3::boolean], '{1}', '{1}', '{-1}', true)), 0)`, holder, pair, shared)
}

func (l *leaseTown) releaseBoth(holder int64, pair, shared bool, token int64) {
	l.t.Helper()
	require.Equal(l.t, 1, testkit.Value[int](l.t, l.Conn, `SELECT count(*) FROM pgbaton.release_leases(
		$1, '{1}', ARRAY[$2::boolean], ARRAY[$3::boolean], ARRAY[$4::bigint], true)`, holder, pair, shared, token))
}

// advisory calls pg_try_advisory_lock or pg_advisory_unlock of the key 1 as a mode and a space of keys want it.
func (l *leaseTown) advisory(call string, pair, shared bool) bool {
	l.t.Helper()
	mode := map[bool]string{false: "", true: "_shared"}[shared]
	key := map[bool]string{false: "1", true: "0, 1"}[pair]
	return testkit.Value[bool](l.t, l.Conn, "SELECT "+call+mode+"("+key+")")
}

// On the way from one engine to the other a lock excludes the locks of either: leases, advisory locks, and its like.
func TestEngines_BothExclude(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	s, other := l.session(7), l.session(8)
	const try, unlock = "pg_try_advisory_lock", "pg_advisory_unlock"
	for _, pair := range []bool{false, true} {
		for _, mine := range []bool{false, true} {
			for _, theirs := range []bool{false, true} {
				what := fmt.Sprintf("pair %v, shared %v and %v", pair, mine, theirs)
				together := mine && theirs
				token := s.both(7, pair, mine)
				require.Positive(t, token, what)
				require.Equal(t, together, other.advisory(try, pair, theirs), what)
				if together {
					require.True(t, other.advisory(unlock, pair, theirs))
				}
				again := other.both(8, pair, theirs)
				require.Equal(t, together, again > 0, what)
				if together {
					other.releaseBoth(8, pair, theirs, again)
				}
				if !pair {
					lone := l.ask(-1, theirs, 1, -1)
					require.Equal(t, together, lone > 0, what)
					require.Equal(t, together, l.release(-1, theirs, lone), what)
				}
				require.True(t, other.advisory(try, !pair, false), "the other space of keys")
				require.True(t, other.advisory(unlock, !pair, false))
				s.releaseBoth(7, pair, mine, token)

				require.True(t, other.advisory(try, pair, theirs), what)
				token = s.both(7, pair, mine)
				require.Equal(t, together, token > 0, what)
				if together {
					s.releaseBoth(7, pair, mine, token)
				}
				require.True(t, other.advisory(unlock, pair, theirs))
				require.Equal(t, []int64{7}, advisoryLocks(t, l.admin, pidOf(s.Conn)), what)
			}
		}
	}
	held := l.lock(-1)
	require.Zero(t, s.both(7, false, false), "a lease alone")
	require.True(t, l.release(-1, false, held))
}

// Tokens of a key rise over every change of the engine, wherever the clock is.
func TestEngines_TokensRise(t *testing.T) {
	t.Parallel()
	for _, ahead := range []int{0, 3600} { // seconds, of the clock: it was set back
		l := newLeaseTown(t)
		s, last := l.session(7), int64(0)
		rises := func(what string, token int64) {
			t.Helper()
			require.Greater(t, token, last, what)
			last = token
		}
		lease := func() {
			t.Helper()
			for _, shared := range []bool{false, true} {
				token := l.ask(-1, shared, 1, -1)
				rises("lease", token)
				require.True(t, l.release(-1, shared, token))
			}
		}
		both := func() {
			t.Helper()
			for _, shared := range []bool{false, true} {
				token := s.both(7, false, shared)
				rises("both", token)
				drawn := testkit.Value[int64](t, s.Conn, "SELECT token FROM pgbaton.acquire_leases(7, 60000, '{1}', '{f}', ARRAY[$1::boolean], '{2}', '{64}', '{-1}', true)", shared)
				rises("drawn", drawn)
				last += 31
				s.releaseBoth(7, false, shared, token)
			}
		}
		session := func() {
			t.Helper()
			rises("session", nextToken(t, s.Conn))
			last += 31
		}
		change := func(to string) { t.Helper(); testkit.Exec(t, l.admin, "SELECT pgbaton.change_engine($1)", to) }

		nextToken(t, s.Conn)
		testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'me', 60000)")
		lease()
		testkit.Exec(t, l.admin, "UPDATE pgbaton.lease SET last = last + $1::bigint * 4096000", ahead)
		lease()
		change("both")
		for range 3 {
			lease()
			both()
		}
		lease()
		testkit.Exec(t, l.Conn, "SELECT pgbaton.leave_leases(-1)")
		change("session")
		session()
		both() // a client of both goes on
		session()
		change("both")
		session()
		both()
		session()
		if ahead > 0 {
			require.Contains(t, refusal(t, l.admin, "SELECT pgbaton.change_engine('lease')").Message, "the clock was set back")
			continue
		}
		change("lease")
		lease()
		both()
		lease()
	}
}

// The first client's engine is recorded; one that contradicts is told by whom and when, and leaves nothing.
func TestEngines_Record(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	s := l.session(0)
	require.Zero(t, testkit.Value[int](t, s.Conn, "SELECT count(*) FROM pgbaton.engine_record()"))
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'the first', 60000)")
	require.Equal(t, "lease the first", testkit.Value[string](t, s.Conn, "SELECT engine || ' ' || recorded_by FROM pgbaton.engine_record() WHERE recorded_at <= clock_timestamp()"))
	err := refusal(t, s.Conn, "SELECT pgbaton.join_engine(2, 'session', 'the second', NULL)")
	require.Equal(t, otherEngine, err.Code)
	require.Contains(t, err.Message, `engine "lease", recorded by the first at 20`)
	require.Contains(t, err.Hint, "change_engine")
	testkit.Exec(t, s.Conn, "SELECT pgbaton.join_engine(3, 'both', 'the third', NULL), pgbaton.join_engine(3, 'both', 'the third', NULL)")
	testkit.Exec(t, l.session(0).Conn, "SELECT pgbaton.join_engine(4, 'lease', 'the fourth', NULL)")
	require.Equal(t, "-1,3,4", testkit.Value[string](t, l.admin, "SELECT string_agg(id::text, ',' ORDER BY id) FROM pgbaton.lock_client"))
	requireRefused(t, l.Conn, forbidden, "SELECT pgbaton.change_engine('both')")
	for _, wrong := range []string{"NULL", "''", "'advisory'"} {
		requireRefused(t, l.admin, invalid, "SELECT pgbaton.change_engine("+wrong+")")
	}
	require.Equal(t, "lease", testkit.Value[string](t, l.admin, "SELECT pgbaton.change_engine('lease')"), "nothing changes")
	requireRefused(t, l.admin, notNow, "SELECT pgbaton.change_engine('session')")
}

// Nobody passes for another one's connection, which would count as gone when that one's session ends.
func TestEngines_ClientsAreThemselves(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	first, second := l.session(0), l.session(0)
	testkit.Exec(t, first.Conn, "SELECT pgbaton.join_engine(5, 'session', 'the first', NULL)")
	requireRefused(t, second.Conn, taken, "SELECT pgbaton.join_engine(5, 'session', 'the second', NULL)")
	requireRefused(t, first.Conn, taken, "SELECT pgbaton.join_engine(5, 'both', 'the first', NULL)")
	requireRefused(t, second.Conn, taken, "SELECT pgbaton.join_engine(5, 'session', 'the second', 1000)")
	testkit.Exec(t, first.Conn, "SELECT pgbaton.join_engine(6, 'session', 'the next one in this session', NULL)")
	require.Equal(t, int64(6), testkit.Value[int64](t, l.admin, "SELECT id FROM pgbaton.lock_client"))

	s := newServices(t)
	testkit.Exec(t, s.first, "SELECT pgbaton.join_engine(-101, 'lease', 'the first', 60000)")
	requireRefused(t, s.second, forbidden, "SELECT pgbaton.join_engine(-101, 'lease', 'the second', 1000)")
	requireRefused(t, s.second, forbidden, "SELECT pgbaton.leave_leases(-101)")
}

// From both on, an engine goes alone only when there is no client of the other one, nor anything that such a one holds.
func TestEngines_ClientsOfTheOther(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	s := l.session(0)
	testkit.Exec(t, s.Conn, "SELECT pgbaton.join_engine(5, 'session', 'a session', NULL)")
	require.Equal(t, "session", testkit.Value[string](t, l.admin, "SELECT pgbaton.change_engine('both')"))
	testkit.Exec(t, l.session(0).Conn, "SELECT pgbaton.join_engine(6, 'both', 'goes on', NULL)")
	err := refusal(t, l.admin, "SELECT pgbaton.change_engine('lease')")
	require.Equal(t, inUse, err.Code)
	require.Contains(t, err.Message, fmt.Sprintf("alone: a session (server process %d)", pidOf(s.Conn)))
	require.NotContains(t, err.Message, "goes on")
	require.NoError(t, s.Close(t.Context()))
	testkit.WaitFor(t, l.admin, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", int64(pidOf(s.Conn)))
	require.Equal(t, "both", testkit.Value[string](t, l.admin, "SELECT pgbaton.change_engine('lease')"))

	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'a pool', 60000)")
	for _, shared := range []bool{false, true} {
		require.Positive(t, l.ask(-1, shared, 1, -1))
		testkit.Exec(t, l.admin, "SELECT pgbaton.change_engine('both')")
		err = refusal(t, l.admin, "SELECT pgbaton.change_engine('session')")
		require.Equal(t, inUse, err.Code)
		require.Contains(t, err.Message, "a pool (behind a pooler)")
		l.owner("UPDATE pgbaton.lock_client SET expires_at = clock_timestamp() - interval '1 ms' WHERE id < 0")
		err = refusal(t, l.admin, "SELECT pgbaton.change_engine('session')")
		require.Equal(t, inUse, err.Code)
		require.Contains(t, err.Message, "1 leases have not expired")
		l.owner("UPDATE pgbaton.lease SET expires_at = clock_timestamp() - interval '1 ms' WHERE holder IS NOT NULL; " +
			"UPDATE pgbaton.lease_share SET expires_at = clock_timestamp() - interval '1 ms'")
		require.Equal(t, "both", testkit.Value[string](t, l.admin, "SELECT pgbaton.change_engine('session')"))
		requireRefused(t, l.Conn, otherEngine, "SELECT pgbaton.join_engine(-1, 'lease', 'a pool', 60000)")
		testkit.Exec(t, l.admin, "SELECT pgbaton.change_engine('both'), pgbaton.change_engine('lease')")
		testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'a pool', 60000)")
	}
}

// Under both, clients of the engine before come back when they have lost their connection, and none of the other engine comes.
func TestEngines_ComeBack(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	id := 5
	session := func() error {
		id++
		_, err := l.session(0).Exec(t.Context(), "SELECT pgbaton.join_engine($1, 'session', 'a session', NULL)", id)
		return err
	}
	pooled := func() error {
		_, err := l.Exec(t.Context(), "SELECT pgbaton.join_engine(-1, 'lease', 'a pool', 60000)")
		return err
	}
	change := func(to string) { t.Helper(); testkit.Exec(t, l.admin, "SELECT pgbaton.change_engine($1)", to) }
	refused := func(err error) {
		t.Helper()
		require.Equal(t, otherEngine, pgerr.Code(err), "%v", err)
	}
	change("both") // nothing was recorded before
	refused(session())
	refused(pooled())
	change("session")
	change("both")
	require.NoError(t, session())
	refused(pooled())
	testkit.WaitFor(t, l.admin, "SELECT count(pg_terminate_backend(pid)) = 0 FROM pgbaton.lock_client JOIN pg_stat_activity USING (pid)")
	change("lease")
	refused(session())
	change("both")
	require.NoError(t, pooled())
	refused(session())
}

// A statement that a pooler has kept back takes and renews nothing when the engine has changed meanwhile, and the change waits for
// one that is under way.
func TestEngines_LateStatements(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	const (
		acquire = "SELECT pgbaton.acquire_lease(-1, 60000, 2, false, 1, 1)"
		expire  = "UPDATE pgbaton.lock_client SET expires_at = clock_timestamp() - interval '1 ms'; " +
			"UPDATE pgbaton.lease SET expires_at = clock_timestamp() - interval '1 ms' WHERE holder IS NOT NULL"
	)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'a pool', 60000)")
	token := l.ask(-1, false, 1, -1)
	require.Positive(t, token)
	testkit.Exec(t, l.admin, "SELECT pgbaton.change_engine('both')")
	l.owner(expire)
	testkit.Exec(t, l.Conn, "BEGIN; "+acquire)
	early := l.asOwner("SELECT pgbaton.change_engine('session')")
	waitsForLock(t, l.admin, early.pid)
	testkit.Exec(t, l.Conn, "COMMIT")
	require.Equal(t, inUse, early.code(), "the lease is there")
	l.owner(expire)
	testkit.Exec(t, l.admin, "SELECT pgbaton.change_engine('session')")
	requireRefused(t, l.Conn, otherEngine, acquire)
	requireRefused(t, l.Conn, otherEngine, "SELECT pgbaton.acquire_leases(-1, 60000, '{3}', '{false}', '{true}', '{1}', '{1}', '{-1}', false)")
	requireRefused(t, l.Conn, otherEngine, fmt.Sprintf("SELECT pgbaton.renew_leases(-1, 60000, '{1}', '{false}', '{false}', '{%d}', '{}', false)", token))
	require.Zero(t, testkit.Value[int](t, l.admin, "SELECT count(*) FROM pgbaton.lease WHERE expires_at > clock_timestamp()"))
}

// A transaction whose snapshot is older than its lock on the record would not see who has joined meanwhile.
func TestEngines_ChangeSeesAll(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	for _, level := range []string{"REPEATABLE READ", "SERIALIZABLE"} {
		testkit.Exec(t, l.admin, "BEGIN ISOLATION LEVEL "+level)
		requireRefused(t, l.admin, notNow, "SELECT pgbaton.change_engine('both')")
		testkit.Exec(t, l.admin, "ROLLBACK")
	}
}

// The engine does not change under a client that is just joining, and nobody joins what is just being changed.
func TestEngines_JoinWhileItChanges(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	s := l.session(0)
	const join = "SELECT pgbaton.join_engine(5, 'session', 'joining', NULL)"
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(4, 'session', 'the first', NULL)")
	testkit.Exec(t, s.Conn, "BEGIN; "+join)
	change := l.asOwner("SELECT pgbaton.change_engine('both')")
	waitsForLock(t, l.admin, change.pid)
	require.Equal(t, "session", testkit.Value[string](t, l.Conn, "SELECT engine FROM pgbaton.engine_record()"))
	testkit.Exec(t, s.Conn, "COMMIT")
	require.Empty(t, change.code())
	require.Contains(t, refusal(t, l.admin, "SELECT pgbaton.change_engine('lease')").Message, "joining (server process")

	testkit.Exec(t, l.admin, "BEGIN; SELECT pgbaton.change_engine('session')")
	joins := l.background(patient + "; SELECT pgbaton.join_engine(-1, 'lease', 'too late', 60000)")
	waitsForLock(t, s.Conn, joins.pid)
	testkit.Exec(t, l.admin, "COMMIT")
	require.Equal(t, otherEngine, joins.code())
	require.Zero(t, testkit.Value[int](t, l.admin, "SELECT count(*) FROM pgbaton.lock_client WHERE name = 'too late'"))
}

// Of those that come first one records its engine; an operator that records one meanwhile is no exception.
func TestEngines_FirstOnes(t *testing.T) {
	t.Parallel()
	const join = "SELECT pgbaton.join_engine(-1, 'lease', 'the other', 60000)"
	for _, commits := range []bool{true, false} {
		for _, call := range []string{join, "SELECT pgbaton.change_engine('lease')"} {
			l := newLeaseTown(t)
			s := l.session(0)
			testkit.Exec(t, s.Conn, "BEGIN; SELECT pgbaton.join_engine(5, 'session', 'the first', NULL)")
			run := l.asOwner
			if call == join {
				run = l.background
			}
			later := run(patient + "; " + call)
			waitsForLock(t, l.admin, later.pid)
			engine, code := "session", otherEngine
			if call != join {
				code = notNow
			}
			if commits {
				testkit.Exec(t, s.Conn, "COMMIT")
			} else {
				testkit.Exec(t, s.Conn, "ROLLBACK")
				engine, code = "lease", ""
			}
			require.Equal(t, code, later.code(), call)
			require.Equal(t, engine, testkit.Value[string](t, l.Conn, "SELECT engine FROM pgbaton.engine_record()"), call)
		}
	}
}

// asOwner is background for the schema's owner.
func (l *leaseTown) asOwner(sql string) background {
	l.t.Helper()
	owner := *l
	owner.dsn = l.admin.Config().ConnString()
	return owner.background(sql)
}
