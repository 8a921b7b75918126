package schema_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	forbidden = "42501"
	invalid   = "22023"
	tooMuch   = "54000"
)

// services is a database with two services that have the grants of one, and a semaphore of 3 of the first.
type services struct {
	owner, first, second *pgx.Conn
	roles                [2]string
}

func newServices(t *testing.T) *services {
	t.Helper()
	s := &services{roles: [2]string{testkit.Role(t), testkit.Role(t)}}
	dsn := testkit.Migrated(t)
	s.owner = testkit.Connect(t, dsn)
	for _, role := range s.roles {
		testkit.Exec(t, s.owner, "SELECT pgbaton.grant_service('"+role+"')")
	}
	s.first, s.second = testkit.Connect(t, testkit.As(t, dsn, s.roles[0])), testkit.Connect(t, testkit.As(t, dsn, s.roles[1]))
	testkit.Exec(t, s.first, "SELECT pgbaton.open_semaphore('calls', 3), pgbaton.enlist(101, 'first'), pgbaton.enlist(-101, 'first')")
	testkit.Exec(t, s.second, "SELECT pgbaton.enlist(102, 'second'), pgbaton.enlist(-102, 'second')")
	return s
}

// claimed is a claim of a slot by one of the first service's holders, as free_slots and its like want it.
func (s *services) claimed(t *testing.T, holder int) string {
	t.Helper()
	return testkit.Value[string](t, s.first, fmt.Sprintf(
		"SELECT format('ARRAY[1], ARRAY[%%s], ARRAY[%%s]::bigint[]', slots[1], token) "+
			"FROM pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), %d, '{1}', 60000, false, 0, false)", holder))
}

func requireRefused(t *testing.T, conn *pgx.Conn, code, sql string) {
	t.Helper()
	require.Equal(t, code, refusal(t, conn, sql).Code, sql)
}

// refusal is the server's error.
func refusal(t *testing.T, conn *pgx.Conn, sql string) *pgconn.PgError {
	t.Helper()
	_, err := conn.Exec(t.Context(), sql)
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr, sql)
	return pgErr
}

// Who does not stand for a holder does nothing in its name: neither a session for another one's, of the same service or
// not, nor a service for another one's holder without a session.
func TestHolders_NobodyElseActs(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	same := testkit.Connect(t, s.first.Config().ConnString())
	for _, holder := range []int{101, -101} {
		claim := s.claimed(t, holder)
		calls := []string{
			fmt.Sprintf("SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), %d, '{1}', 60000, false, 0, false)", holder),
			fmt.Sprintf("SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), %d, '{2}', 60000, false, 0, true)", holder),
			fmt.Sprintf("SELECT pgbaton.free_slots(%d, %s, '{7}')", holder, claim),
			fmt.Sprintf("SELECT pgbaton.free_slots(%d, '{1,1}', '{1,2}', '{1,2}', '{7,7}')", holder),
			fmt.Sprintf("SELECT pgbaton.renew_slots(%d, %s, 1000, false)", holder, claim),
			fmt.Sprintf("SELECT pgbaton.renew_slots(%d, '{}', '{}', '{}', 1000, true)", holder),
			fmt.Sprintf("SELECT pgbaton.retire(%d)", holder),
		}
		for _, path := range []string{"public", "pg_catalog, pg_temp"} {
			for _, call := range calls {
				for _, conn := range []*pgx.Conn{s.second, same} {
					if conn == same && holder < 0 {
						continue // it speaks for the service
					}
					testkit.Exec(t, conn, "SET search_path = "+path+"; SET pgbaton.holder = '101'")
					requireRefused(t, conn, forbidden, call)
				}
			}
		}
		freed := testkit.Value[bool](t, s.first, fmt.Sprintf("SELECT (pgbaton.free_slots(%d, %s, '{7}')).freed = '{1}'", holder, claim))
		require.True(t, freed, "it is the holder's still")
	}
	requireRefused(t, s.second, "23505", "SELECT pgbaton.enlist(101, 'second')")
	requireRefused(t, s.second, forbidden, "SELECT pgbaton.enlist(-101, 'second')")
}

// A semaphore is its service's: others neither use it nor look at it, until they are granted the service's role. One
// from before there were services is everybody's.
func TestSemaphores_BelongToServices(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	claim := s.claimed(t, 101)
	calls := []string{
		"SELECT pgbaton.open_semaphore('calls', 3)",
		"SELECT pgbaton.open_semaphore('calls', NULL)",
		"SELECT pgbaton.open_semaphore('calls', 9, 9)",
		"SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 102, '{1}', 60000, false, 0, false)",
		"SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 102, '{2}', 60000, false, 0, false)",
		"SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), -102, '{1}', 60000, false, 100, true)",
		"SELECT pgbaton.resize_semaphore(1, 1)",
		"SELECT pgbaton.semaphore_state(1)",
		"SELECT pgbaton.semaphore_holders(1)",
		"SELECT pgbaton.holds_slots(1, 101, '{1}', 32)",
	}
	for _, path := range []string{"public", "pg_catalog, pg_temp"} {
		testkit.Exec(t, s.second, "SET search_path = "+path)
		for _, call := range calls {
			err := refusal(t, s.second, call)
			require.Equal(t, forbidden, err.Code)
			require.Contains(t, err.Message, "'calls'")
			require.Contains(t, err.Hint, "GRANT "+s.roles[0]+" TO "+s.roles[1])
		}
	}
	// With the lock of a dead holder one stands for it, and yet keeps nothing of a semaphore of others.
	require.NoError(t, s.first.Close(t.Context()))
	testkit.WaitFor(t, s.owner, sqlGone, 101)
	testkit.Exec(t, s.second, "SELECT pg_advisory_lock(101)")
	require.True(t, testkit.Value[bool](t, s.second, "SELECT coalesce(cardinality(pgbaton.renew_slots(101, "+claim+", 60000, false)), 0) = 0"))

	testkit.Exec(t, s.owner, "GRANT "+s.roles[0]+" TO "+s.roles[1])
	for _, call := range calls {
		testkit.Exec(t, s.second, call)
	}
	testkit.Exec(t, s.owner, "REVOKE "+s.roles[0]+" FROM "+s.roles[1])
	requireRefused(t, s.second, forbidden, calls[3])
	testkit.Exec(t, s.owner, "UPDATE pgbaton.semaphore SET service = NULL")
	for _, call := range calls {
		testkit.Exec(t, s.second, call)
	}
}

// A call with more than there may be is refused.
func TestSemaphores_Bounds(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	testkit.Exec(t, s.owner, "INSERT INTO pgbaton.semaphore (name, gate, capacity, service) "+
		"SELECT 'many/' || n, n, 10000, '"+s.roles[1]+"' FROM generate_series(1, 100) AS n")
	requireRefused(t, s.second, tooMuch, "SELECT pgbaton.open_semaphore('one more', 1)")
	for _, path := range []string{"public", "pg_catalog, pg_temp"} {
		testkit.Exec(t, s.first, "SET search_path = "+path)
		for _, call := range []string{
			"open_semaphore('', 3)", "open_semaphore(NULL, 3)", "open_semaphore(repeat('a', 513), 3)", "open_semaphore('a', 0)",
			"open_semaphore('a', 10001)", "open_semaphore('a', 3, -1)", "open_semaphore('a', NULL, 1)", "open_semaphore('a', 3, NULL)",
			"resize_semaphore(1, 0)", "resize_semaphore(1, NULL)", "resize_semaphore(1, 2147483647)",
			"enlist(0, 'a')", "enlist(NULL, 'a')", "enlist(5, repeat('a', 10000000))", "enlist(5, NULL)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{1}', 2147483647, false, 0, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{1}', 0, false, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{1}', -5, false, 0, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{1}', NULL, false, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), -101, '{1}', 3600001, false, 0, true)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{}', 1000, false, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, NULL, 1000, false, 0, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{1,-1}', 1000, false, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{10001}', 1000, false, 0, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{1,NULL}', 1000, false, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, array_fill(1, ARRAY[5000]), 1000, false, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{2}', 1000, false, 2147483647, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{2}', 1000, NULL, 0, false)",
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), NULL, '{1}', 1000, false, 0, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 0, '{1}', 1000, false, 0, false)",
			"renew_slots(101, '{1}', '{1}', '{1}', -1, false)", "renew_slots(101, '{1}', '{1}', '{1}', 2147483647, false)",
			"renew_slots(0, '{1}', '{1}', '{1}', 1000, false)", "free_slots(NULL, '{1}', '{1}', '{1}', '{1}')",
			"free_slots(101, array_fill(1, ARRAY[20000]), array_fill(1, ARRAY[20000]), array_fill(1::bigint, ARRAY[20000]), '{1}')",
		} {
			requireRefused(t, s.first, invalid, "SELECT pgbaton."+call)
		}
	}
	require.Equal(t, int64(0), testkit.Value[int64](t, s.owner, "SELECT count(*) FROM pgbaton.slot WHERE holder IS NOT NULL"))
}

// A session is one holder, and what it was before is nobody.
func TestHolders_OneForASession(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	s.claimed(t, 101)
	testkit.Exec(t, s.first, "SELECT pgbaton.enlist(n, 'again') FROM generate_series(1001, 1200) AS n")
	require.Equal(t, int64(1200), testkit.Value[int64](t, s.owner, "SELECT id FROM pgbaton.holder WHERE id > 0 AND id <> 102"))
	require.Equal(t, []int64{1200}, advisoryLocks(t, s.owner, pidOf(s.first)))
	require.Equal(t, int64(1), testkit.Value[int64](t, s.first, "SELECT granted::bigint FROM pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 1200, '{3}', 1000, false, 0, false)"))
}

// Rows of holders that are gone go.
func TestHolders_Shrink(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	for i := range 30 {
		conn := testkit.Connect(t, s.first.Config().ConnString())
		testkit.Exec(t, conn, fmt.Sprintf("SELECT pgbaton.enlist(%d, 'short')", 500+i))
		if i%3 == 0 {
			testkit.Exec(t, conn, fmt.Sprintf("SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), %d, '{1}', 1000, false, 0, false)", 500+i))
		}
		require.NoError(t, conn.Close(t.Context()))
		testkit.WaitFor(t, s.owner, sqlGone, 500+i)
	}
	testkit.WaitFor(t, s.second, "SELECT count(*) >= 0 FROM pgbaton.tend()")
	testkit.WaitFor(t, s.owner, "SELECT (SELECT count(*) FROM pgbaton.holder WHERE id > 0) <= 2 OR pgbaton.forget_holders() < 0")

	// Those without a session, by age and by number.
	testkit.Exec(t, s.owner, "INSERT INTO pgbaton.holder (id, name, since, service) "+
		"SELECT -1000 - n, '', now() - n * interval '1 s', '"+s.roles[1]+"' FROM generate_series(1, 1500) AS n")
	testkit.Exec(t, s.second, "SELECT pgbaton.enlist(-102, 'second')")
	require.Equal(t, int64(1001), testkit.Value[int64](t, s.owner, "SELECT count(*) FROM pgbaton.holder WHERE service = '"+s.roles[1]+"'::regrole AND id < 0"))
	testkit.Exec(t, s.owner, "UPDATE pgbaton.holder SET since = now() - interval '8 days'")
	s.claimed(t, -101)
	testkit.Eventually(t, "one holder without a session", func() bool { // a call that looks forgets a thousand at most
		testkit.Exec(t, s.second, "SELECT pgbaton.tend()")
		return testkit.Value[int](t, s.owner, "SELECT count(*) FROM pgbaton.holder WHERE id < 0") == 1
	})
	require.Equal(t, int64(-101), testkit.Value[int64](t, s.owner, "SELECT id FROM pgbaton.holder WHERE id < 0"), "it holds something")
	testkit.Exec(t, s.second, "SELECT pgbaton.claim_slots(2, 7, -102, '{1}', 1000, false, 0, true)")
	require.True(t, testkit.Value[bool](t, s.owner, "SELECT service = '"+s.roles[1]+"'::regrole FROM pgbaton.holder WHERE id = -102"), "it is known again")
}

// Semaphores that nobody opens go when an operator says so.
func TestSemaphores_Pruned(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	testkit.Exec(t, s.first, "SELECT pgbaton.open_semaphore('held', 2), pgbaton.open_semaphore('new', 2)")
	testkit.Exec(t, s.first, "SELECT pgbaton.claim_slots((pgbaton.open_semaphore('held', 2)).id, pgbaton.key('pgbaton/semaphore/held'), 101, '{1}', 60000, false, 0, false)")
	testkit.Exec(t, s.owner, "UPDATE pgbaton.semaphore SET opened_at = now() - interval '40 days' WHERE name <> 'new'")
	requireRefused(t, s.first, forbidden, "SELECT pgbaton.prune_semaphores('30 days')")
	requireRefused(t, s.owner, invalid, "SELECT pgbaton.prune_semaphores('1 hour')")
	require.Equal(t, int64(1), testkit.Value[int64](t, s.owner, "SELECT pgbaton.prune_semaphores('30 days')"))
	require.Equal(t, "held,new", testkit.Value[string](t, s.owner, "SELECT string_agg(name, ',' ORDER BY name) FROM pgbaton.semaphore"))
	require.Equal(t, int64(4), testkit.Value[int64](t, s.owner, "SELECT count(*) FROM pgbaton.slot"))
	testkit.Exec(t, s.first, "SELECT pgbaton.open_semaphore('held', 2)")
	require.True(t, testkit.Value[bool](t, s.owner, "SELECT opened_at > now() - interval '1 hour' FROM pgbaton.semaphore WHERE name = 'held'"))
}

// Only an operator writes the table of slots anew: whoever does it and leaves the transaction open stops everybody.
func TestSlots_ServicesDoNotCompact(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	require.Equal(t, false, testkit.Value[any](t, s.first, "SELECT pgbaton.compact_slots(524288)"), "there is nothing to do")
	err := refusal(t, s.first, "SELECT pgbaton.compact_slots(1)")
	require.Equal(t, forbidden, err.Code)
	require.Contains(t, err.Hint, "As an operator")
	testkit.Exec(t, s.owner, "SELECT pgbaton.grant_operator('"+s.roles[0]+"')")
	require.Equal(t, true, testkit.Value[any](t, s.first, "SELECT pgbaton.compact_slots(1)"))
}

// A step of the clock ahead takes nothing from a holder whose session lives; it goes on by renewing.
func TestSlots_ClockStepsAhead(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	other := testkit.Connect(t, s.first.Config().ConnString())
	testkit.Exec(t, other, "SELECT pgbaton.enlist(103, 'other')")
	claim := func(holder int, wants string) int64 {
		return testkit.Value[int64](t, other, fmt.Sprintf("SELECT granted::bigint FROM pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), %d, '%s', 60000, false, 0, false)", holder, wants))
	}
	step := func() {
		testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET expires_at = expires_at - interval '3 hours' WHERE holder IS NOT NULL")
	}
	held := s.claimed(t, 101)
	renew := "SELECT coalesce(pgbaton.renew_slots(101, " + held + ", 60000, false) = '{1}', false)"
	for range 3 {
		step()
		require.EqualValues(t, 0, claim(103, "{3}"))
		require.True(t, testkit.Value[bool](t, s.owner, "SELECT available = 2 FROM pgbaton.semaphore_state(1)"))
		require.True(t, testkit.Value[bool](t, s.owner, "SELECT count(*) = 1 FROM pgbaton.semaphore_holders(1)"))
		require.True(t, testkit.Value[bool](t, s.owner, strings.Replace("SELECT pgbaton.holds_slots(1, 101, X)", "X",
			testkit.Value[string](t, s.owner, "SELECT format('ARRAY[%s], %s', slot, token) FROM pgbaton.slot WHERE holder = 101"), 1)))
		require.True(t, testkit.Value[bool](t, s.first, renew))
	}
	// One that lives and does not renew loses it a lease after somebody has looked.
	step()
	require.EqualValues(t, 0, claim(103, "{3}"))
	require.True(t, testkit.Value[bool](t, s.owner, "SELECT expires_at > clock_timestamp() FROM pgbaton.slot WHERE holder = 101"))
	require.EqualValues(t, 0, claim(103, "{3}"))
	step()
	require.EqualValues(t, 1, claim(103, "{3}"))
	require.False(t, testkit.Value[bool](t, s.first, renew))
	require.True(t, testkit.Value[bool](t, s.first, "SELECT (pgbaton.free_slots(101, "+held+", '{7}')).freed IS NULL"))

	// Without a session there is the clock alone.
	testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET holder = -101, token = 1")
	step()
	require.EqualValues(t, 1, claim(103, "{3}"))
}

// A stranger that takes the lock of a dead holder keeps its slots from the others for two leases at the most.
func TestSlots_StrangerWithTheLockOfADeadHolder(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	other := testkit.Connect(t, s.first.Config().ConnString())
	testkit.Exec(t, other, "SELECT pgbaton.enlist(103, 'other')")
	s.claimed(t, 101)
	require.NoError(t, s.first.Close(t.Context()))
	testkit.WaitFor(t, s.second, "SELECT pg_try_advisory_lock(101)")
	const claim = "SELECT granted::bigint FROM pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 103, '{3}', 60000, false, 0, false)"
	for range 2 {
		require.EqualValues(t, 0, testkit.Value[int64](t, other, claim))
		testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET expires_at = expires_at - interval '61 s' WHERE holder = 101")
	}
	require.EqualValues(t, 1, testkit.Value[int64](t, other, claim))
}

// A claim for longer than its own lease was made before the clock was set back. It is cut to its lease, and told.
func TestSlots_ClaimsFromTheFuture(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	held := s.claimed(t, -101)
	left := func() float64 {
		return testkit.Value[float64](t, s.owner, "SELECT extract(epoch FROM expires_at - clock_timestamp())::float8 FROM pgbaton.slot WHERE holder = -101")
	}
	const tend = "SELECT coalesce(string_agg(semaphore || ' ' || slots, ','), '') FROM pgbaton.tend()"
	testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET expires_at = clock_timestamp() + interval '60.5 s' WHERE holder = -101")
	require.Empty(t, testkit.Value[string](t, s.second, tend), "that is nothing")
	testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET expires_at = clock_timestamp() + interval '3 years' WHERE holder = -101")
	require.Equal(t, "calls 1", testkit.Value[string](t, s.second, tend))
	require.LessOrEqual(t, left(), 60.0)
	require.Empty(t, testkit.Value[string](t, s.second, tend))
	require.True(t, testkit.Value[bool](t, s.first, "SELECT coalesce(pgbaton.renew_slots(-101, "+held+", 60000, false) = '{1}', false)"), "who lives goes on")
}

// A row that another transaction has is still the session's, and the others are renewed meanwhile.
func TestSlots_RenewedBesideALockedRow(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	testkit.Exec(t, s.first, "SET lock_timeout = '100ms'")
	testkit.Exec(t, s.first, "SELECT pgbaton.claim_slots(1, pgbaton.key('pgbaton/semaphore/calls'), 101, '{3}', 60000, false, 0, false)")
	testkit.Exec(t, s.owner, "BEGIN; SELECT FROM pgbaton.slot WHERE slot = 2 FOR UPDATE")
	token := testkit.Value[int64](t, s.owner, "SELECT token FROM pgbaton.slot WHERE slot = 1")
	call := fmt.Sprintf("SELECT ARRAY(SELECT unnest(pgbaton.renew_slots(101, '{1,1,1}', '{1,2,3}', '{%d,%d,%d}', 60000, false)) ORDER BY 1)::text", token, token, token)
	require.Equal(t, "{1,2,3}", testkit.Value[string](t, s.first, call))
	testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET expires_at = clock_timestamp() - interval '1 s' WHERE slot = 2; COMMIT; "+
		"BEGIN; SELECT FROM pgbaton.slot WHERE slot = 2 FOR UPDATE")
	require.Equal(t, "{1,3}", testkit.Value[string](t, s.first, call), "nobody knows who has it")
	testkit.Exec(t, s.owner, "ROLLBACK")
	require.Equal(t, "{1,2,3}", testkit.Value[string](t, s.first, call))
}
