package schema_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// slots is a semaphore with two holders, as SQL knows it.
type slots struct {
	id, gate          int64
	owner, one, other *pgx.Conn
}

// sqlGone says whether a holder's session has ended.
const sqlGone = `SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND objid = $1::integer
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`

// claim is what claim_slots grants.
type claim struct {
	Granted int32
	Slots   []int32
	Token   *int64
}

// newSlots makes a semaphore of 3. The functions have a fast way for sessions with one search_path.
func newSlots(t *testing.T, searchPath string) *slots {
	t.Helper()
	ownerURL, appURL := newDatabase(t)
	s := &slots{owner: testkit.Connect(t, ownerURL), one: testkit.Connect(t, appURL), other: testkit.Connect(t, appURL)}
	testkit.Exec(t, s.one, "SET search_path = "+searchPath+"; SELECT pgbaton.enlist(101, 'one')")
	testkit.Exec(t, s.other, "SET search_path = "+searchPath+"; SELECT pgbaton.enlist(102, 'other')")
	s.id = testkit.Value[int64](t, s.one, "SELECT id::bigint FROM pgbaton.open_semaphore('calls', 3)")
	s.gate = testkit.Value[int64](t, s.one, "SELECT pgbaton.key('pgbaton/semaphore/calls')")
	return s
}

// claim claims for the holder of a session.
func (s *slots) claim(t *testing.T, conn *pgx.Conn, wants string) claim {
	t.Helper()
	return s.claimFor(t, conn, "current_setting('pgbaton.holder')::bigint", wants, 60_000, "false, 0, false")
}

// claimFor claims for a holder: at the gate or not, in the queue of those who cannot stand there, with a look at the
// tokens.
func (s *slots) claimFor(t *testing.T, conn *pgx.Conn, holder, wants string, ttlMilliseconds int, how string) claim {
	t.Helper()
	rows, err := conn.Query(t.Context(), "SELECT granted, slots, token "+
		"FROM pgbaton.claim_slots($1::bigint::integer, $2, "+holder+", $3::text::integer[], $4, "+how+")",
		s.id, s.gate, wants, ttlMilliseconds)
	require.NoError(t, err)
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[claim])
	require.NoError(t, err)
	return c
}

// change frees or renews a slot, and says whether it did. It does it as a statement of its own and together with
// another, which takes another way.
func (s *slots) change(t *testing.T, conn *pgx.Conn, with string, holder int64, slot int32, token int64, alone bool) bool {
	t.Helper()
	arrays := "ARRAY[$2::bigint::integer], ARRAY[$3::integer], ARRAY[$4::bigint]"
	if !alone {
		arrays = "ARRAY[$2::bigint::integer, 0], ARRAY[$3::integer, 0], ARRAY[$4::bigint, 0]"
	}
	call := "(pgbaton.free_slots($1, " + arrays + ", ARRAY[1, 2])).freed"
	if with == "renew" {
		call = "pgbaton.renew_slots($1, " + arrays + ", 60000, false)"
	}
	return testkit.Value[bool](t, conn, "SELECT coalesce("+call+" = '{1}', false)", holder, s.id, slot, token)
}

// A slot is freed and renewed by who has claimed it, by that claim and before it has expired.
func TestSlots_FromSQL(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"pg_catalog, pg_temp", "public"} {
		for _, alone := range []bool{true, false} {
			t.Run(strings.ReplaceAll(path, ", ", "+")+map[bool]string{true: "/Alone", false: "/WithOthers"}[alone], func(t *testing.T) {
				t.Parallel()
				s := newSlots(t, path)
				first := s.claim(t, s.one, "{1}")
				require.EqualValues(t, 1, first.Granted)
				slot, token := first.Slots[0], *first.Token

				for _, change := range []string{"renew", "free"} {
					require.False(t, s.change(t, s.other, change, 102, slot, token, alone), "%s by another", change)
					require.False(t, s.change(t, s.one, change, 101, slot, token-32, alone), "%s by another claim", change)
				}
				require.True(t, s.change(t, s.one, "renew", 101, slot, token, alone))
				require.True(t, s.change(t, s.one, "free", 101, slot, token, alone))
				for _, change := range []string{"renew", "free"} {
					require.False(t, s.change(t, s.one, change, 101, slot, token, alone), "%s of what is free", change)
				}

				expired := s.claimFor(t, s.one, "-101", "{1,2}", 60_000, "false, 0, false") // without a session
				require.EqualValues(t, 2, expired.Granted)
				require.Greater(t, *expired.Token, token)
				testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET expires_at = clock_timestamp()")
				for _, change := range []string{"renew", "free"} {
					require.False(t, s.change(t, s.one, change, -101, expired.Slots[0], *expired.Token, alone), "%s of what has expired", change)
				}
				next := s.claim(t, s.other, "{3}")
				require.EqualValues(t, 1, next.Granted, "what has expired can be claimed")
				require.Greater(t, *next.Token, *expired.Token)
				for _, change := range []string{"renew", "free"} {
					require.False(t, s.change(t, s.one, change, -101, expired.Slots[0], *expired.Token, alone), "a late %s", change)
				}
				require.Equal(t, int64(0), testkit.Value[int64](t, s.owner,
					"SELECT available::bigint FROM pgbaton.semaphore_state($1::bigint::integer)", s.id))
			})
		}
	}
}

// A claim gives each request all or nothing, in their order, and only to who may have it.
func TestSlots_Claims(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"pg_catalog, pg_temp", "public"} {
		t.Run(strings.ReplaceAll(path, ", ", "+"), func(t *testing.T) {
			t.Parallel()
			s := newSlots(t, path)
			require.EqualValues(t, 1, s.claim(t, s.one, "{2,2,1}").Granted, "the third does not pass the second")
			require.EqualValues(t, 0, s.claim(t, s.other, "{2,1}").Granted, "nor does anybody pass the first")

			// Somebody stands at the gate.
			testkit.Exec(t, s.owner, "SELECT pg_advisory_lock(pgbaton.key('pgbaton/semaphore/calls'))")
			require.EqualValues(t, 0, s.claim(t, s.other, "{1}").Granted)
			testkit.Exec(t, s.owner, "SELECT pg_advisory_unlock_all()")
			require.EqualValues(t, 1, s.claim(t, s.other, "{1}").Granted)

			// The first holder's session ends.
			require.EqualValues(t, 0, s.claim(t, s.other, "{2}").Granted)
			require.NoError(t, s.one.Close(t.Context()))
			testkit.WaitFor(t, s.owner, "SELECT available = 2 FROM pgbaton.semaphore_state($1::bigint::integer)", s.id)
			granted := s.claim(t, s.other, "{2}")
			require.EqualValues(t, 1, granted.Granted)

			// A capacity that is lowered takes nothing from anybody, and grants nothing until enough is free.
			testkit.Exec(t, s.owner, "SELECT pgbaton.resize_semaphore($1::bigint::integer, 1)", s.id)
			require.True(t, s.change(t, s.other, "free", 102, granted.Slots[0], *granted.Token, true))
			require.EqualValues(t, 0, s.claim(t, s.other, "{1}").Granted, "two are held, and one is allowed")
			require.True(t, s.change(t, s.other, "free", 102, granted.Slots[1], *granted.Token, true))
			require.EqualValues(t, 0, s.claim(t, s.other, "{1}").Granted)
			require.Equal(t, int64(1), testkit.Value[int64](t, s.owner, "SELECT count(*) FROM pgbaton.slot"))
		})
	}
}

// Who stands at the gate and who cannot stand there take turns.
func TestSlots_Turns(t *testing.T) {
	t.Parallel()
	const (
		atGate = "true, 0, false"
		pooled = "false, 60000, true" // with a place in the queue
		passes = "false, 0, true"     // without
	)
	for _, path := range []string{"pg_catalog, pg_temp", "public"} {
		for _, wants := range []string{"{1}", "{1,1}"} {
			t.Run(strings.ReplaceAll(path, ", ", "+")+"/"+wants, func(t *testing.T) {
				t.Parallel()
				s := newSlots(t, path)
				testkit.Exec(t, s.owner, "SELECT pgbaton.resize_semaphore($1::bigint::integer, 1)", s.id)
				claim := func(holder, how string) int32 { return s.claimFor(t, s.one, holder, wants, 60_000, how).Granted }
				gateUntil := func() time.Time {
					return testkit.Value[time.Time](t, s.owner, "SELECT gate_until FROM pgbaton.semaphore WHERE gate_until IS NOT NULL")
				}
				// The turns that are noted last for half a second; on a busy machine that is no time.
				const later = "UPDATE pgbaton.semaphore SET head_until = head_until + interval '1 min', gate_until = gate_until + interval '1 min'"
				free := func() { testkit.Exec(t, s.owner, "UPDATE pgbaton.slot SET holder = NULL, expires_at = NULL") }
				testkit.Exec(t, s.owner, "SELECT pg_advisory_lock($1::bigint)", s.gate) // somebody stands there all the time
				require.EqualValues(t, 0, claim("-1", pooled), "it is taken note of")
				require.EqualValues(t, 0, claim("101", atGate), "the turn of -1, then that of the gate")
				require.EqualValues(t, 0, claim("-2", pooled))
				require.EqualValues(t, 1, claim("-1", pooled))
				for range 2 {
					testkit.Exec(t, s.owner, later)
					require.EqualValues(t, 0, claim("101", atGate), "nothing is free")
					until := gateUntil()
					testkit.Exec(t, s.owner, later)
					require.EqualValues(t, 0, claim("101", atGate), "it waits for its turn")
					require.True(t, gateUntil().After(until), "which it is given for longer")
					testkit.Exec(t, s.owner, later)
					free()
					require.EqualValues(t, 0, claim("-1", pooled), "not one after the other")
					require.EqualValues(t, 0, claim("-2", pooled), "nor another")
					require.EqualValues(t, 0, claim("-3", passes))
					require.EqualValues(t, 1, claim("101", atGate))
					free()
					require.EqualValues(t, 0, claim("-2", pooled), "it is taken note of")
					require.EqualValues(t, 0, claim("101", atGate))
					require.EqualValues(t, 1, claim("-2", pooled))
				}
				// The note of the gate's turn is forgotten when nobody comes for it.
				free()
				testkit.WaitFor(t, s.owner, "SELECT gate_until < clock_timestamp() FROM pgbaton.semaphore")
				require.EqualValues(t, 0, claim("-1", pooled))
				require.EqualValues(t, 1, claim("-1", pooled))
			})
		}
	}
}

// What a dead holder held is found also while a free slot cannot be claimed: a transaction counts on it.
func TestSlots_DeadBesidePinned(t *testing.T) {
	t.Parallel()
	s := newSlots(t, "public")
	asserted := s.claim(t, s.other, "{1}")
	require.EqualValues(t, 1, s.claim(t, s.one, "{2}").Granted)
	testkit.Exec(t, s.owner, "BEGIN")
	require.True(t, testkit.Value[bool](t, s.owner, "SELECT pgbaton.holds_slots($1::bigint::integer, 102, $2, $3)",
		s.id, asserted.Slots, *asserted.Token))
	require.True(t, s.change(t, s.other, "free", 102, asserted.Slots[0], *asserted.Token, true))
	require.EqualValues(t, 0, s.claim(t, s.other, "{1}").Granted)
	require.NoError(t, s.one.Close(t.Context()))
	testkit.WaitFor(t, s.owner, sqlGone, 101)
	require.EqualValues(t, 1, s.claim(t, s.other, "{2}").Granted)
	testkit.Exec(t, s.owner, "ROLLBACK")
}

// A capacity that was lowered is reached when the holder of what is too much is dead.
func TestSlots_DeadSurplus(t *testing.T) {
	t.Parallel()
	s := newSlots(t, "public")
	require.EqualValues(t, 1, s.claim(t, s.other, "{3}").Granted)
	testkit.Exec(t, s.owner, "SELECT pgbaton.resize_semaphore($1::bigint::integer, 1)", s.id)
	require.EqualValues(t, 0, s.claim(t, s.one, "{1}").Granted)
	require.NoError(t, s.other.Close(t.Context()))
	testkit.WaitFor(t, s.owner, sqlGone, 102)
	require.EqualValues(t, 1, s.claim(t, s.one, "{1}").Granted)
	require.Equal(t, int64(1), testkit.Value[int64](t, s.owner, "SELECT count(*) FROM pgbaton.slot"))
}

func TestResize_UnknownLeavesTheTransactionAsItWas(t *testing.T) {
	t.Parallel()
	s := newSlots(t, "public")
	testkit.Exec(t, s.owner, "BEGIN; SET LOCAL lock_timeout = '7s'")
	require.True(t, testkit.Value[bool](t, s.owner, "SELECT pgbaton.resize_semaphore(999, 1) IS NULL"))
	require.Equal(t, "7s", testkit.Value[string](t, s.owner, "SHOW lock_timeout"))
	require.Equal(t, int64(5), testkit.Value[int64](t, s.owner, "SELECT pgbaton.resize_semaphore($1::bigint::integer, 5)::bigint", s.id))
	require.Equal(t, "7s", testkit.Value[string](t, s.owner, "SHOW lock_timeout"))
	testkit.Exec(t, s.owner, "ROLLBACK")
}
