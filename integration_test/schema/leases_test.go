package schema_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// leaseTown is a database and a session that asks for leases of one key in the name of several holders.
type leaseTown struct {
	*pgx.Conn

	t     *testing.T
	dsn   string
	admin *pgx.Conn
}

func newLeaseTown(t *testing.T) *leaseTown {
	t.Helper()
	owner, app := newDatabase(t)
	return &leaseTown{testkit.Connect(t, app), t, app, testkit.Connect(t, owner)}
}

// ask asks for a key: shared or not, 0 before those that wait or 1 after them; waited is -1 for a holder that does not go on
// waiting. It returns the token, 0 for none.
func (l *leaseTown) ask(holder int64, shared bool, want, waited int) int64 {
	l.t.Helper()
	return testkit.Value[int64](l.t, l.Conn, `SELECT coalesce((SELECT token FROM pgbaton.acquire_leases(
		$1, 60000, '{1}', '{f}', ARRAY[$2::boolean], ARRAY[$3::integer], '{1}', ARRAY[$4::integer], false)), 0)`, holder, shared, want, waited)
}

func (l *leaseTown) lock(holder int64) int64  { l.t.Helper(); return l.ask(holder, false, 1, -1) }
func (l *leaseTown) share(holder int64) int64 { l.t.Helper(); return l.ask(holder, true, 1, -1) }

func (l *leaseTown) release(holder int64, shared bool, token int64) bool {
	l.t.Helper()
	return testkit.Value[int](l.t, l.Conn,
		"SELECT count(*) FROM pgbaton.release_leases($1, '{1}', '{f}', ARRAY[$2::boolean], ARRAY[$3::bigint], false)", holder, shared, token) == 1
}

// owner runs a statement as the owner of the schema: what time would do, without waiting for it.
func (l *leaseTown) owner(sql string) { l.t.Helper(); testkit.Exec(l.t, l.admin, sql) }

// Leases exclude in both modes, tokens rise, and only holder and token give a lease back.
func TestLeases(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	first := l.lock(-1)
	require.Positive(t, first)
	require.Greater(t, first, testkit.Value[int64](t, l.Conn,
		"SELECT ((extract(epoch FROM clock_timestamp()) - 1577836800 - 60) * 4096000)::bigint"), "not below the clock")
	require.Zero(t, l.lock(-2))
	require.Zero(t, l.share(-2))
	require.False(t, l.release(-2, false, first), "somebody else's")
	require.False(t, l.release(-1, false, first-1), "an older one")
	require.False(t, l.release(-1, true, first), "another mode")
	require.True(t, l.release(-1, false, first))
	require.False(t, l.release(-1, false, first), "a second time")

	second, third := l.share(-1), l.share(-2)
	require.Greater(t, second, first)
	require.Greater(t, third, second)
	require.Zero(t, l.lock(-3))
	require.True(t, l.release(-1, true, second))
	require.Zero(t, l.lock(-3))
	require.True(t, l.release(-2, true, third))
	fourth := l.lock(-3)
	require.Greater(t, fourth, third)
	require.True(t, l.release(-3, false, fourth))
	require.Greater(t, testkit.Value[int64](t, l.Conn, "SELECT pgbaton.acquire_lease(-1, 60000, 1, false, 1, 5)"), fourth)
	fifth := testkit.Value[int64](t, l.Conn, "SELECT token + 4 FROM pgbaton.acquire_leases(-1, 60000, '{1}', '{f}', '{f}', '{2}', '{5}', '{-1}', false)")
	require.Greater(t, fifth, fourth+5, "drawn behind those of the grant")
	require.True(t, testkit.Value[bool](t, l.Conn, `SELECT pgbaton.acquire_lease(-1, 60000, 1, true, 1, 1) > 0`), "another space of keys")
}

// A lease of a holder without a session is over when the database's clock says so, and only then.
func TestLeases_Expire(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		l := newLeaseTown(t)
		testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'me', 60000)")
		held := l.ask(-1, shared, 1, -1)
		table := map[bool]string{false: "lease", true: "lease_share"}[shared]
		shift := func(to string) {
			l.owner("UPDATE pgbaton." + table + " SET expires_at = clock_timestamp() + interval '" + to + "' WHERE key = 1")
		}
		shift("1 second")
		require.Zero(t, l.lock(-2))
		shift("-1 microsecond")
		next := l.lock(-2)
		require.Greater(t, next, held)
		require.False(t, l.release(-1, shared, held))
		require.Zero(t, testkit.Value[int](t, l.Conn, fmt.Sprintf(
			"SELECT count(*) FROM pgbaton.renew_leases(-1, 60000, '{1}', '{f}', '{%t}', '{%d}', '{}', false)", shared, held)), "not renewed either")
		require.True(t, l.release(-2, false, next))

		// The clock was set back: a lease is no longer than it may be.
		held = l.ask(-1, shared, 1, -1)
		shift("1 day")
		require.Zero(t, l.lock(-2))
		require.True(t, testkit.Value[bool](t, l.admin,
			"SELECT expires_at < clock_timestamp() + interval '61 s' FROM pgbaton."+table+" WHERE key = 1"))
		require.True(t, l.release(-1, shared, held))
	}
}

// A lease of a session is free as soon as that has ended; while it lives the clock alone takes nothing from it.
func TestLeases_Session(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		l := newLeaseTown(t)
		session := &leaseTown{testkit.Connect(t, l.dsn), t, l.dsn, l.admin}
		testkit.Exec(t, session.Conn, "SELECT pgbaton.enlist(7, 'a session')")
		held := session.ask(7, shared, 1, -1)
		expire := func() {
			l.owner("UPDATE pgbaton.lease SET expires_at = clock_timestamp() - interval '1 ms' WHERE expires_at IS NOT NULL; " +
				"UPDATE pgbaton.lease_share SET expires_at = clock_timestamp() - interval '1 ms'")
		}
		expire()
		require.Zero(t, l.lock(-1), "it lives")
		require.Equal(t, 1, testkit.Value[int](t, session.Conn, fmt.Sprintf(
			"SELECT count(*) FROM pgbaton.renew_leases(7, 60000, '{1}', '{f}', '{%t}', '{%d}', '{}', false)", shared, held)))
		expire()
		require.Zero(t, l.lock(-1), "it was renewed meanwhile: this is the first time")
		expire()
		require.Positive(t, l.lock(-1), "not renewed for another length")
		l.owner("DELETE FROM pgbaton.lease; DELETE FROM pgbaton.lease_share")

		require.Positive(t, session.ask(7, shared, 1, -1))
		require.Zero(t, l.lock(-1))
		require.NoError(t, session.Close(t.Context()))
		testkit.Eventually(t, "the session has ended", func() bool { return l.lock(-1) > 0 })
	}
}

// The one that has waited longest is next; others are let through only if they do not wait. A turn ends with its holder's patience.
func TestLeases_Turns(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	next := func() int64 {
		return testkit.Value[int64](t, l.admin, "SELECT coalesce(next, 0) FROM pgbaton.lease WHERE key = 1")
	}
	held := l.lock(-1)
	require.Zero(t, l.lock(-5))
	require.Zero(t, next(), "who does not go on waiting has no turn")
	require.Zero(t, l.ask(-2, false, 1, 1000))
	require.Equal(t, int64(-2), next())
	require.Zero(t, l.ask(-3, true, 1, 5000))
	require.Equal(t, int64(-3), next(), "it has waited longer")
	require.Zero(t, l.ask(-2, false, 1, 1100))
	require.Equal(t, int64(-3), next())
	looks := func(holder int64) int {
		return testkit.Value[int](t, l.Conn, "SELECT count(*) FROM pgbaton.acquire_leases($1, 60000, '{1}', '{f}', '{f}', '{3}', '{1}', '{-1}', false)", holder)
	}
	l.turnLasts()
	require.Zero(t, looks(-1), "others wait")
	require.True(t, l.release(-1, false, held))
	l.turnLasts()
	require.Zero(t, l.lock(-4))
	require.Zero(t, l.ask(-2, false, 1, 1200))
	passes := l.ask(-4, false, 0, -1)
	require.Positive(t, passes, "it may pass")
	require.True(t, l.release(-4, false, passes))
	require.Zero(t, l.ask(-2, false, 1, 0))
	require.Positive(t, l.ask(-3, true, 1, 0), "its turn is still to come")
	require.Positive(t, l.share(-6))
	l.owner("DELETE FROM pgbaton.lease_share")

	held = l.lock(-1)
	require.Zero(t, l.ask(-2, false, 1, 10))
	testkit.Exec(t, l.Conn, "SELECT pgbaton.acquire_leases(-2, 60000, '{1}', '{f}', '{f}', '{4}', '{1}', '{-1}', false)")
	require.Zero(t, next(), "given up")
	require.Equal(t, 1, looks(-1))
	require.Zero(t, l.ask(-2, false, 1, 10))
	l.owner("UPDATE pgbaton.lease SET next_until = clock_timestamp() - interval '1 ms'")
	require.True(t, l.release(-1, false, held))
	require.Positive(t, l.lock(-4), "a turn that its holder does not confirm is over")
}

// Another service's holders, and the functions behind the functions, are not to be used.
func TestLeases_HostileNeighbour(t *testing.T) {
	t.Parallel()
	s := newServices(t)
	take := func(holder int) int64 {
		return testkit.Value[int64](t, s.first, "SELECT pgbaton.acquire_lease($1::bigint, 60000, $1::bigint, false, 1, 1)", holder)
	}
	for _, holder := range []int{101, -101} {
		token := take(holder)
		for _, call := range []string{
			"pgbaton.acquire_lease(H, 60000, 77, false, 0, 1)",
			"pgbaton.acquire_leases(H, 60000, '{H}', '{f}', '{f}', '{2}', '{1}', '{-1}', false)",
			"pgbaton.release_lease(H, H, false, T)",
			"pgbaton.release_leases(H, '{H}', '{f}', '{f}', '{T}', false)",
			"pgbaton.renew_leases(H, 1, '{H}', '{f}', '{f}', '{T}', '{}', false)",
			"pgbaton.renew_leases(-102, 60000, '{}', '{}', '{}', '{}', '{H}', true)",
			"pgbaton.leave_leases(H)",
			"pgbaton.free_leases('{H}', '{}', '{}')",
			"pgbaton.raise_tokens(1)",
			"pgbaton.change_engine('lease')",
		} {
			sql := "SELECT " + strings.NewReplacer("H", fmt.Sprint(holder), "T", fmt.Sprint(token)).Replace(call)
			requireRefused(t, s.second, forbidden, sql)
		}
		require.Equal(t, int64(holder), testkit.Value[int64](t, s.owner, "SELECT holder FROM pgbaton.lease WHERE key = $1", holder))
	}
}

// Calls about the same keys in other orders end in no deadlock.
func TestLeases_NoDeadlocks(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	var group sync.WaitGroup
	for holder := range 4 {
		conn := testkit.Connect(t, l.dsn)
		testkit.Exec(t, conn, patient)
		group.Go(func() {
			for range testkit.Brief(200, 40) {
				keys := rand.Perm(20)
				text := "{" + strings.Trim(strings.ReplaceAll(fmt.Sprint(keys), " ", ","), "[]") + "}"
				all := func(value string) string {
					return "{" + strings.TrimSuffix(strings.Repeat(value+",", len(keys)), ",") + "}"
				}
				rows, err := conn.Query(t.Context(), "SELECT request, token FROM pgbaton.acquire_leases($1, 60000, $2::text::bigint[], $3::text::boolean[], "+
					"$3::text::boolean[], $4::text::integer[], $4::text::integer[], $5::text::integer[], false)", -1-holder, text, all("f"), all("1"), all("3"))
				places, tokens := []int{}, []int64{}
				if err == nil {
					var place int
					var token int64
					_, err = pgx.ForEachRow(rows, []any{&place, &token}, func() error {
						places, tokens = append(places, keys[place-1]), append(tokens, token)
						return nil
					})
				}
				if err == nil {
					_, err = conn.Exec(t.Context(), "SELECT pgbaton.release_leases($1, $2, array_fill(false, ARRAY[cardinality($2::bigint[])]), "+
						"array_fill(false, ARRAY[cardinality($2::bigint[])]), $3, false)", -1-holder, places, tokens)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	require.Zero(t, testkit.Value[int](t, l.admin, "SELECT count(*) FROM pgbaton.lease WHERE holder IS NOT NULL"))
}
