package schema_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	serialization = "40001"
	patient       = "SET lock_timeout = '90 s'" // for a holder without a session it is half a second unless it is set
)

// session is the town as another session sees it. Unless it is 0, the session is that holder.
func (l *leaseTown) session(holder int64) *leaseTown {
	l.t.Helper()
	s := &leaseTown{testkit.Connect(l.t, l.dsn), l.t, l.dsn, l.admin}
	if holder != 0 {
		testkit.Exec(l.t, s.Conn, "SELECT pgbaton.enlist($1, 'a session')", holder)
	}
	return s
}

// turnLasts gives a turn more time than a busy machine takes.
func (l *leaseTown) turnLasts() {
	l.t.Helper()
	l.owner("UPDATE pgbaton.lease SET next_until = clock_timestamp() + interval '50 s' WHERE next IS NOT NULL")
}

// renews reports whether a lease of the key 1 is renewed.
func (l *leaseTown) renews(holder int64, shared bool, token int64) bool {
	l.t.Helper()
	return testkit.Value[int](l.t, l.Conn, "SELECT count(*) FROM pgbaton.renew_leases($1, 60000, '{1}', '{f}', ARRAY[$2::boolean], ARRAY[$3::bigint], '{}', false)",
		holder, shared, token) == 1
}

// A key that is asked for twice in one call is served twice, the second time as the first has left it, however many others there are.
func TestLeases_OneKeyTwice(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	const twice = `SELECT array_agg(token ORDER BY request) FROM pgbaton.acquire_leases(-1, 60000, array_fill(5::bigint, ARRAY[12]), array_fill(false, ARRAY[12]),
		array_fill(false, ARRAY[12]), ARRAY[1] || array_fill($1::integer, ARRAY[11]), array_fill(4, ARRAY[12]), array_fill(-1, ARRAY[12]), false)`
	tokens := testkit.Value[[]int64](t, l.Conn, twice, 2)
	require.Len(t, tokens, 12)
	for i := range 11 {
		require.GreaterOrEqual(t, tokens[i+1], tokens[i]+4, "no token is given out twice")
	}
	// Many keys, one of them twice where the server fetches the next rows.
	require.Equal(t, 11, testkit.Value[int](t, l.Conn, `SELECT count(*) FROM pgbaton.acquire_leases(-1, 60000, '{1,2,3,4,5,6,7,8,9,10,10}', array_fill(false, ARRAY[11]),
		array_fill(false, ARRAY[11]), '{1,1,1,1,1,1,1,1,1,1,2}', array_fill(1, ARRAY[11]), array_fill(-1, ARRAY[11]), false)`))
	require.Zero(t, l.ask(-2, false, 1, 10))
	require.True(t, l.release(-1, false, testkit.Value[int64](t, l.admin, "SELECT token FROM pgbaton.lease WHERE key = 1")))
	require.Equal(t, 1, testkit.Value[int](t, l.Conn,
		"SELECT count(*) FROM pgbaton.acquire_leases(-2, 60000, '{1,1}', '{f,f}', '{f,f}', '{4,1}', '{1,1}', '{-1,-1}', false)"), "given up, and taken as anybody may")
}

// A length, a number of tokens and arrays that may not be are refused: a token far ahead of the clock would be ahead of it for ever.
func TestLeases_Bounds(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	const arrays = "'{1}', '{f}', '{f}', '{1}', '{1}', '{-1}', false)"
	for _, call := range []string{
		"acquire_lease(-1, NULL, 1, false, 1, 1)", "acquire_lease(-1, 999, 1, false, 1, 1)", "acquire_lease(-1, 3600001, 1, false, 1, 1)",
		"acquire_lease(-1, 1000, 1, false, 1, 2147483647)", "acquire_lease(-1, 1000, 1, false, 1, -2147483648)", "acquire_lease(-1, 1000, 1, false, 1, NULL)",
		"acquire_lease(-1, 1000, 1, false, 2, 1)", "acquire_lease(0, 1000, 1, false, 1, 1)", "acquire_lease(NULL, 1000, 1, false, 1, 1)",
		"acquire_leases(-1, NULL, " + arrays, "acquire_leases(-1, 2147483647, " + arrays, "acquire_leases(NULL, 1000, " + arrays,
		"acquire_leases(-1, 1000, '{1,2}', '{f}', '{f}', '{1}', '{1}', '{-1}', false)", "acquire_leases(-1, 1000, '{1}', '{f}', '{f}', '{1}', '{1}', '{}', false)",
		"acquire_leases(-1, 1000, '{1}', '{f}', '{f}', '{5}', '{1}', '{-1}', false)", "acquire_leases(-1, 1000, '{1}', '{f}', '{f}', '{1}', '{65}', '{-1}', false)",
		"acquire_leases(-1, 1000, '{1}', '{f}', '{f}', '{1}', '{0}', '{-1}', false)", "acquire_leases(-1, 1000, '{1}', '{f}', '{f}', '{1}', '{1}', '{-2}', false)",
		"acquire_leases(-1, 1000, '{1}', '{f}', '{f}', '{1}', '{NULL}', '{-1}', false)", "acquire_leases(-1, 1000, NULL, '{f}', '{f}', '{1}', '{1}', '{-1}', false)",
		"renew_leases(-1, NULL, '{1}', '{f}', '{f}', '{1}', '{}', false)", "renew_leases(-1, 2147483647, '{1}', '{f}', '{f}', '{1}', '{}', false)",
		"join_engine(-1, 'lease', 'me', 0)", "join_engine(-1, 'lease', 'me', 2147483647)", "join_engine(-1, 'both', 'me', 1000)",
	} {
		requireRefused(t, l.Conn, invalid, "SELECT FROM pgbaton."+call)
	}
	require.Zero(t, testkit.Value[int](t, l.admin, "SELECT count(*) FROM pgbaton.lease WHERE holder IS NOT NULL"))
}

// A transaction that is left open with the row of a lease locked makes nobody's session lose it, nor what else is renewed.
func TestLeases_RenewedBesideALockedRow(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	s, stranger := l.session(7), l.session(0)
	const take = `SELECT array_agg(token ORDER BY request) FROM pgbaton.acquire_leases(7, 60000, '{1,2,3,4}', '{f,f,f,f}', '{f,t,f,t}', '{1,1,1,1}', '{1,1,1,1}', '{-1,-1,-1,-1}', false)`
	const renew = `SELECT array_agg(request ORDER BY request)::text FROM pgbaton.renew_leases(7, 60000, '{1,2,3,4}', '{f,f,f,f}', '{f,t,f,t}', $1, '{}', false)`
	tokens := testkit.Value[[]int64](t, s.Conn, take)
	testkit.Exec(t, s.Conn, "SET lock_timeout = '1 s'")
	open := func() {
		testkit.Exec(t, stranger.Conn, "BEGIN; SELECT FROM pgbaton.acquire_leases(-9, 1000, '{1,2}', '{f,f}', '{f,f}', '{1,1}', '{1,1}', '{-1,-1}', false)")
	}
	open()
	require.Equal(t, "{1,2,3,4}", testkit.Value[string](t, s.Conn, renew, tokens))
	testkit.Exec(t, stranger.Conn, "ROLLBACK")
	l.owner("UPDATE pgbaton.lease SET overdue = true WHERE key = 1; UPDATE pgbaton.lease_share SET overdue = true WHERE key = 2")
	open()
	require.Equal(t, "{3,4}", testkit.Value[string](t, s.Conn, renew, tokens), "nobody knows who has the others")
	testkit.Exec(t, stranger.Conn, "ROLLBACK")
	require.Equal(t, "{1,2,3,4}", testkit.Value[string](t, s.Conn, renew, tokens))
	tokens[0]--
	require.Equal(t, "{2,3,4}", testkit.Value[string](t, s.Conn, renew, tokens), "an older token")
}

// The same of a holder without a session, whose leases end by the clock: those that are not renewed are named, and others are renewed.
// Whoever waits leaves the locked row alone, so that it is served with its other keys.
func TestLeases_PooledBesideALockedRow(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	stranger := l.session(0)
	const take = `SELECT array_agg(token ORDER BY request) FROM pgbaton.acquire_leases(-7, 60000, '{1,2,3,4}', '{f,f,f,f}', '{f,t,f,t}', '{1,1,1,1}', '{1,1,1,1}', '{-1,-1,-1,-1}', false)`
	const renew = `SELECT array_agg(request ORDER BY request)::text FROM pgbaton.renew_leases(-7, 60000, '{1,2,3,4}', '{f,f,f,f}', '{f,t,f,t}', $1, '{}', false)`
	tokens := testkit.Value[[]int64](t, l.Conn, take)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-7, 'lease', 'me', 60000)")
	testkit.Exec(t, l.Conn, "SELECT pgbaton.lock_leases('{5}', '{f}')")
	testkit.Exec(t, stranger.Conn, "BEGIN; SELECT FROM pgbaton.acquire_leases(-9, 1000, '{1,2,5}', '{f,f,f}', '{f,f,f}', '{1,1,1}', '{1,1,1}', '{-1,-1,-1}', false)")
	require.Equal(t, "{-2,-1,3,4}", testkit.Value[string](t, l.Conn, renew, tokens))
	require.Equal(t, int64(6), testkit.Value[int64](t, l.Conn,
		"SELECT key FROM unnest('{5,6}'::bigint[]) WITH ORDINALITY AS q (key, n) WHERE n = (SELECT request FROM pgbaton.acquire_leases(-8, 60000, '{5,6}', '{f,f}', '{f,f}', '{1,1}', '{1,1}', '{10,10}', false))"))
	requireRefused(t, l.Conn, "55P03", "SELECT pgbaton.lock_leases('{1,6}', '{f,f}')")
	l.owner("UPDATE pgbaton.lease SET expires_at = clock_timestamp() WHERE key = 4; UPDATE pgbaton.lease_share SET expires_at = clock_timestamp() WHERE key = 2")
	require.Equal(t, "{-1,3,4}", testkit.Value[string](t, l.Conn, renew, tokens), "what has expired is lost, as far as can be seen")
	testkit.Exec(t, stranger.Conn, "ROLLBACK")
	require.Equal(t, "{1,2,3,4}", testkit.Value[string](t, l.Conn, renew, tokens))
}

// A holder of a shared lease that asks for more, and is refused, keeps what it has.
func TestLeases_RefusedKeeps(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'me', 60000)")
	mine, other := l.share(-1), l.share(-2)
	require.Zero(t, l.lock(-1), "another one shares it")
	require.True(t, l.renews(-1, true, mine))
	again := l.share(-1)
	require.Greater(t, again, other)
	require.False(t, l.release(-1, true, mine))
	require.True(t, l.release(-2, true, other))
	whole := l.lock(-1)
	require.Greater(t, whole, again)
	require.False(t, l.renews(-1, true, again))
	require.Zero(t, l.share(-2))
	require.True(t, l.release(-1, false, whole))
}

// When the clock was set back, a turn from the future is over, and tokens rise also for keys that were forgotten.
func TestLeases_ClockSetBack(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'me', 60000)")
	held := l.lock(-1)
	require.Zero(t, l.ask(-2, false, 1, 10))
	require.True(t, l.release(-1, false, held))
	l.turnLasts()
	require.Zero(t, l.lock(-3), "it is the turn of another")
	l.owner("UPDATE pgbaton.lease SET next_since = next_since + interval '1 hour', next_until = next_until + interval '1 hour'")
	require.Equal(t, 1, testkit.Value[int](t, l.Conn, "SELECT count(*) FROM pgbaton.acquire_leases(-3, 60000, '{1}', '{f}', '{f}', '{3}', '{1}', '{-1}', false)"))
	held = l.lock(-3)
	require.Positive(t, held)
	require.True(t, l.release(-3, false, held))

	// As if the clock had been ahead by two hours, when it was forgotten that the key 1 had such a token.
	l.owner("INSERT INTO pgbaton.lease_floor (last) SELECT last + 7200000::bigint * 4096 FROM pgbaton.lease; DELETE FROM pgbaton.lease")
	later := l.lock(-1)
	require.Greater(t, later, held+7200000*4096)
	require.Greater(t, testkit.Value[int64](t, l.Conn, "SELECT pgbaton.acquire_lease(-1, 60000, 2, false, 1, 1)"), held+7200000*4096, "any key may be one that was forgotten")
}

// Keys that nobody has used for an hour are forgotten, also those that holders have left behind that are gone; nothing else is.
func TestLeases_Forgotten(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	lives, dies := l.session(7), l.session(8)
	const take = `SELECT count(*) FROM pgbaton.acquire_leases($1, 60000, $2, '{f,f}', '{f,t}', '{1,1}', '{1,1}', '{-1,-1}', false)`
	for conn, holder := range map[*leaseTown]int64{l: -1, lives: 7, dies: 8} {
		require.Equal(t, 2, testkit.Value[int](t, conn.Conn, take, holder, []int64{holder * 2, holder*2 + 1}))
	}
	require.Equal(t, 2, testkit.Value[int](t, l.Conn, take, -2, []int64{100, 101}), "of a holder that lives, and has long held them")
	token := l.lock(-1)
	require.True(t, l.release(-1, false, token))
	l.owner("UPDATE pgbaton.lease SET last = last - 3700000::bigint * 4096")
	const left = "SELECT string_agg(key::text, ',' ORDER BY key) FROM pgbaton.lease"
	testkit.Exec(t, l.Conn, "SELECT pgbaton.tend_leases()")
	require.Equal(t, "-2,-1,14,15,16,17,100,101", testkit.Value[string](t, l.admin, left))
	require.Equal(t, token-3700000*4096, testkit.Value[int64](t, l.admin, "SELECT last FROM pgbaton.lease_floor"))
	l.owner("UPDATE pgbaton.lease SET expires_at = expires_at - interval '2 hours' WHERE key < 100; " +
		"UPDATE pgbaton.lease_share SET expires_at = expires_at - interval '2 hours' WHERE key < 100")
	require.NoError(t, dies.Close(t.Context()))
	testkit.WaitFor(t, l.admin, sqlGone, 8)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.tend_leases()")
	require.Equal(t, "14,15,100,101", testkit.Value[string](t, l.admin, left))
	require.Equal(t, 2, testkit.Value[int](t, l.admin, "SELECT count(*) FROM pgbaton.lease_share"))
	require.Positive(t, testkit.Value[int64](t, l.Conn, "SELECT pgbaton.acquire_lease(-1, 60000, 17, false, 1, 1)"))
}

// A key that is forgotten while it is asked for: the call is refused as one that can be repeated, and nothing is granted twice.
func TestLeases_ForgottenMeanwhile(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	for call, code := range map[string]string{
		"SELECT FROM pgbaton.acquire_leases(-1, 60000, '{1,2}', '{f,f}', '{f,f}', '{1,1}', '{1,1}', '{-1,-1}', false)": serialization,
		"SELECT pgbaton.acquire_lease(-1, 60000, 1, false, 1, 1)":                                                      "",
	} {
		token := l.lock(-5)
		require.True(t, l.release(-5, false, token))
		l.owner("UPDATE pgbaton.lease SET last = 7")
		tidy := l.session(0)
		testkit.Exec(t, tidy.Conn, "BEGIN; SELECT pgbaton.tend_leases()")
		done := l.background(patient + "; " + call)
		waitsForLock(t, l.admin, done.pid)
		testkit.Exec(t, tidy.Conn, "COMMIT")
		require.Equal(t, code, done.code())
		l.owner("UPDATE pgbaton.lease SET holder = NULL, token = NULL, expires_at = NULL, length = NULL")
	}
}

// background runs a statement in a session of its own.
type background struct {
	pid  uint32
	code func() string // waits for its end: SQLSTATE, "" for none
}

func stateOf(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &pgErr):
		return pgErr.Code
	}
	return err.Error()
}

func (l *leaseTown) background(sql string) background {
	l.t.Helper()
	conn := testkit.Connect(l.t, l.dsn)
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), lab.Hang)
	l.t.Cleanup(cancel)
	go func() {
		_, err := conn.Exec(ctx, sql)
		done <- err
	}()
	return background{pidOf(conn), func() string { return stateOf(<-done) }}
}

// A client's next holder takes leases over from the one before. What that has besides is given back, and nothing of what the next one has.
func TestLeases_OnlyThese(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-2, 'lease', 'me', 60000)")
	take := func(holder int64, keys string) []int64 {
		return testkit.Value[[]int64](t, l.Conn, `SELECT array_agg(token ORDER BY request) FROM pgbaton.acquire_leases(
			$1, 60000, $2::text::bigint[], '{f,f,f,f}', '{f,t,f,t}', '{1,1,1,1}', '{1,1,1,1}', '{-1,-1,-1,-1}', false)`, holder, keys)
	}
	tokens := take(-1, "{1,2,3,4}")
	take(-2, "{5,6,7,8}")
	take(-3, "{9,10,11,12}")
	require.Equal(t, "{1,2}", testkit.Value[string](t, l.Conn,
		"SELECT array_agg(request ORDER BY request)::text FROM pgbaton.renew_leases(-2, 60000, '{1,2}', '{f,f}', '{f,t}', $1, '{-1}', true)", tokens[:2]))
	const held = `SELECT string_agg(key || ':' || holder, ' ' ORDER BY key) FROM (SELECT key, holder FROM pgbaton.lease WHERE holder IS NOT NULL
		UNION ALL SELECT key, holder FROM pgbaton.lease_share) AS h`
	require.Equal(t, "1:-2 2:-2 5:-2 6:-2 7:-2 8:-2 9:-3 10:-3 11:-3 12:-3", testkit.Value[string](t, l.admin, held))
	testkit.Exec(t, l.Conn, "SELECT pgbaton.leave_leases(-2)")
	require.Equal(t, "9:-3 10:-3 11:-3 12:-3", testkit.Value[string](t, l.admin, held))
	require.Equal(t, "55000", refusal(t, l.Conn, "SELECT FROM pgbaton.renew_leases(-2, 60000, '{}', '{}', '{}', '{}', '{}', false)").Code, "it is no client")
}

// Whatever a holder without a session believes in is on disk, and on a synchronous standby: it outlives a crash of the server, and a failover.
func TestLeases_AreOnDisk(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	testkit.Exec(t, l.Conn, "SELECT pgbaton.join_engine(-1, 'lease', 'me', 60000); SELECT pgbaton.enlist(7, 'me')")
	for _, before := range []string{"off", "local", "remote_apply"} {
		raised := map[string]string{"off": "on", "local": "on", "remote_apply": "remote_apply"}[before]
		testkit.Exec(t, l.Conn, "SET synchronous_commit = "+before)
		for call, want := range map[string]string{
			"acquire_lease(-1, 60000, 1, false, 1, 1)":                                    raised,
			"acquire_leases(-1, 60000, '{1}', '{f}', '{f}', '{1}', '{1}', '{-1}', false)": raised,
			"renew_leases(-1, 60000, '{1}', '{f}', '{f}', '{1}', '{}', false)":            raised,
			"join_engine(-1, 'lease', 'me', 60000)":                                       raised,
			"enlist(-1, 'me')":                                                            raised, // as all that a holder of slots calls
			"acquire_lease(7, 60000, 2, false, 1, 1)":                                     before,
			"renew_leases(7, 60000, '{2}', '{f}', '{f}', '{1}', '{}', false)":             before,
		} {
			testkit.Exec(t, l.Conn, "BEGIN; SELECT FROM pgbaton."+call)
			require.Equal(t, want, testkit.Value[string](t, l.Conn, "SELECT current_setting('synchronous_commit')"), call)
			testkit.Exec(t, l.Conn, "COMMIT")
		}
	}
}

// A release tells the one whose turn it is, and nobody else, and not when its turn is over.
func TestLeases_Notify(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	first, second, ear := l.session(7), l.session(8), l.session(0)
	testkit.Exec(t, ear.Conn, "LISTEN pgbaton_lease")
	heard := func() []string {
		testkit.Exec(t, l.Conn, "NOTIFY pgbaton_lease, 'end'")
		var payloads []string
		for {
			n, err := ear.WaitForNotification(testkit.Context(t))
			require.NoError(t, err)
			if n.Payload == "end" {
				return payloads
			}
			payloads = append(payloads, n.Payload)
		}
	}
	held := l.lock(-1)
	require.Zero(t, first.ask(7, false, 1, 10))
	require.Zero(t, second.ask(8, false, 1, 5000))
	l.turnLasts()
	require.True(t, l.release(-1, false, held))
	require.Equal(t, []string{"8/1/0"}, heard())
	held = second.ask(8, false, 1, 5001)
	require.Zero(t, first.ask(7, false, 1, 20))
	l.turnLasts()
	require.True(t, testkit.Value[bool](t, second.Conn, "SELECT pgbaton.release_lease(8, 1, false, $1)", held))
	require.Equal(t, []string{"7/1/0"}, heard())
	held = first.ask(7, false, 1, 21)
	require.Zero(t, second.ask(8, true, 1, 5))
	l.owner("UPDATE pgbaton.lease SET next_until = clock_timestamp() - interval '1 ms'")
	require.True(t, first.release(7, false, held))
	require.Empty(t, heard())
	held = first.lock(7)
	require.Zero(t, l.ask(-1, false, 1, 10))
	l.turnLasts()
	require.True(t, first.release(7, false, held))
	require.Empty(t, heard(), "who has no session hears nothing")
}

// Transactions that give one key back and take another, as round trips of clients do, end in no deadlock.
func TestLeases_ExchangedWithoutDeadlocks(t *testing.T) {
	t.Parallel()
	l := newLeaseTown(t)
	var group sync.WaitGroup
	for holder := range int64(4) {
		conn := testkit.Connect(t, l.dsn)
		group.Go(func() {
			if err := exchange(t.Context(), conn, -1-holder, testkit.Brief(300, 60)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

// exchange takes keys, and gives each back in the transaction in which it takes the next.
func exchange(ctx context.Context, conn *pgx.Conn, holder int64, rounds int) error {
	if _, err := conn.Exec(ctx, fmt.Sprintf("%s; SELECT pgbaton.join_engine(%d, 'lease', 'me', 60000)", patient, holder)); err != nil {
		return err
	}
	held, token := int64(0), int64(0)
	for range rounds {
		next, got := rand.Int64N(4), int64(0)
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SELECT pgbaton.lock_leases($1, '{f,f}')", []int64{held, next}); err != nil {
				return fmt.Errorf("lock %d and %d: %w", held, next, err)
			}
			if _, err := tx.Exec(ctx, "SELECT pgbaton.release_lease($1, $2, false, $3)", holder, held, token); err != nil {
				return fmt.Errorf("release %d: %w", held, err)
			}
			if err := tx.QueryRow(ctx, "SELECT coalesce(pgbaton.acquire_lease($1, 60000, $2, false, 1, 1), 0)", holder, next).Scan(&got); err != nil {
				return fmt.Errorf("acquire %d: %w", next, err)
			}
			_, err := tx.Exec(ctx, "SELECT FROM pgbaton.renew_leases($1, 60000, $2, '{f}', '{f}', $3, '{}', false)", holder, []int64{next}, []int64{got})
			return err
		})
		if err != nil {
			return err
		}
		held, token = next, got
	}
	return nil
}
