package schema_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestTokens_Rise(t *testing.T) {
	t.Parallel()
	_, app := newDatabase(t)
	const sessions, draws = 4, 50
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[int64]bool{}
	for range sessions {
		conn := testkit.Connect(t, app)
		group.Go(func() {
			var last int64
			for range draws {
				var token int64
				if err := conn.QueryRow(t.Context(), "SELECT pgbaton.next_token()").Scan(&token); err != nil || token < last+32 {
					t.Errorf("token %d after %d: %v", token, last, err)
					return
				}
				last = token
				mu.Lock()
				seen[token] = true
				mu.Unlock()
			}
		})
	}
	group.Wait()
	require.Len(t, seen, sessions*draws)
}

func TestTokens_LastBlockEndsBelow2To53(t *testing.T) {
	t.Parallel()
	owner, app := newDatabase(t)
	conn := testkit.Connect(t, owner)
	nextToken(t, conn)
	const last = 1<<53 - 32
	testkit.Exec(t, conn, "SELECT setval('pgbaton.token', 9007199254740992 - 64)")
	conn = testkit.Connect(t, app)
	require.Equal(t, int64(last), nextToken(t, conn))
	_, err := conn.Exec(t.Context(), "SELECT pgbaton.next_token()")
	require.ErrorContains(t, err, "reached maximum value")
}

func TestTokens_Repair(t *testing.T) {
	t.Parallel()
	causes := map[string]string{
		"Truncate":           "TRUNCATE pgbaton.incarnation",
		"Delete":             "DELETE FROM pgbaton.incarnation",
		"OtherStart":         "UPDATE pgbaton.incarnation SET started = started - interval '1 s'",
		"OtherDatabase":      "UPDATE pgbaton.incarnation SET database = 0",
		"OtherRelation":      "UPDATE pgbaton.incarnation SET relation = 'pg_class'::regclass",
		"Restart":            "ALTER SEQUENCE pgbaton.token RESTART",
		"RestartAndTruncate": `ALTER SEQUENCE pgbaton.token RESTART; TRUNCATE pgbaton.incarnation`,
	}
	for name, cause := range causes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			before := nextToken(t, app)
			require.True(t, testkit.Value[bool](t, app, "SELECT pgbaton.tokens_trusted()"))
			testkit.Exec(t, owner, cause)
			require.False(t, testkit.Value[bool](t, app, "SELECT pgbaton.tokens_trusted()"))
			after := nextToken(t, app)
			require.Greater(t, after, before+31)
			require.Less(t, after, int64(1)<<53)
			require.True(t, testkit.Value[bool](t, app, "SELECT pgbaton.tokens_trusted()"))
			require.False(t, testkit.Value[bool](t, app, "SELECT pgbaton.repair_tokens()"))
			require.Greater(t, nextToken(t, app), after+31)
		})
	}
}

// While a repair's transaction goes on, others do not wait for it: they repair as well, and theirs is committed, whatever
// becomes of the first. A transaction of the caller's may take long.
func TestTokens_RepairHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for _, cause := range []string{"TRUNCATE pgbaton.incarnation", "UPDATE pgbaton.incarnation SET started = now()"} {
		for _, end := range []string{"COMMIT", "ROLLBACK"} {
			t.Run(cause+"/"+end, func(t *testing.T) {
				t.Parallel()
				ownerURL, appURL := newDatabase(t)
				owner, first, second := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL), testkit.Connect(t, appURL)
				before := nextToken(t, first)
				testkit.Exec(t, owner, cause)

				testkit.Exec(t, first, "BEGIN")
				require.True(t, testkit.Value[bool](t, first, "SELECT pgbaton.repair_tokens()"))
				firstToken := nextToken(t, first)
				require.False(t, testkit.Value[bool](t, second, "SELECT pgbaton.tokens_trusted()"), "nothing is believed before it is so")
				secondToken := nextToken(t, second)
				require.True(t, testkit.Value[bool](t, second, "SELECT pgbaton.tokens_trusted()"))
				thirdToken := nextToken(t, first)
				testkit.Exec(t, first, end)
				require.False(t, testkit.Value[bool](t, first, "SELECT pgbaton.repair_tokens()"))

				require.Greater(t, firstToken, before)
				require.Greater(t, secondToken, firstToken)
				require.Greater(t, thirdToken, secondToken)
				require.Greater(t, nextToken(t, second), thirdToken)
			})
		}
	}
}

// Many find it at once; one repairs, and others only if it does not commit soon.
func TestTokens_OneRepairs(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner := testkit.Connect(t, ownerURL)
	before := nextToken(t, owner)
	conns := make([]*pgx.Conn, 8)
	for i := range conns {
		conns[i] = testkit.Connect(t, appURL)
	}
	for range 20 {
		testkit.Exec(t, owner, "TRUNCATE pgbaton.incarnation")
		var repairs atomic.Int32
		var finders sync.WaitGroup
		for _, conn := range conns {
			finders.Go(func() {
				if repair(t, conn) {
					repairs.Add(1)
				}
			})
		}
		finders.Wait()
		require.Positive(t, repairs.Load())
		after := nextToken(t, owner)
		require.Greater(t, after, before)
		before = after
	}
}

// A transaction whose snapshot is older than the repair does not fail.
func TestTokens_OldSnapshot(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, old, other := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL), testkit.Connect(t, appURL)
	before := nextToken(t, other)
	for _, cause := range []string{"DELETE FROM pgbaton.incarnation", "UPDATE pgbaton.incarnation SET started = now()"} {
		testkit.Exec(t, owner, cause)
		testkit.Exec(t, old, "BEGIN ISOLATION LEVEL REPEATABLE READ")
		testkit.Exec(t, old, "SELECT 1")
		repaired := nextToken(t, other)
		require.Greater(t, repaired, before)
		before = nextToken(t, old)
		require.Greater(t, before, repaired)
		testkit.Exec(t, old, "COMMIT")
	}
}

func repair(t *testing.T, conn *pgx.Conn) (done bool) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT pgbaton.repair_tokens()").Scan(&done); err != nil {
		t.Error(err)
	}
	return done
}

// The row may not be seen before the sequence's new value is on disk, whatever the caller has set.
func TestTokens_RepairIsSynchronous(t *testing.T) {
	t.Parallel()
	for set, want := range map[string]string{
		"off": "on", "local": "on", "on": "on", "remote_write": "remote_write", "remote_apply": "remote_apply",
	} {
		t.Run(set, func(t *testing.T) {
			t.Parallel()
			_, appURL := newDatabase(t)
			app := testkit.Connect(t, appURL)
			const sqlSetting = "SELECT current_setting('synchronous_commit')"
			testkit.Exec(t, app, "SET synchronous_commit = "+set)
			testkit.Exec(t, app, "BEGIN")
			nextToken(t, app)
			require.Equal(t, want, testkit.Value[string](t, app, sqlSetting))
			testkit.Exec(t, app, "COMMIT")
			require.Equal(t, set, testkit.Value[string](t, app, sqlSetting))
			testkit.Exec(t, app, "BEGIN")
			nextToken(t, app)
			require.Equal(t, set, testkit.Value[string](t, app, sqlSetting), "without a repair it is the caller's")
			testkit.Exec(t, app, "COMMIT")
		})
	}
}

// Repairs in a row, as in a crash loop, do not run ahead of the clock: else a sequence that is then lost, or an
// old one that a standby brings, would begin below tokens that were handed out.
func TestTokens_RepairsKeepToTheClock(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	const clock = "SELECT ((extract(epoch FROM clock_timestamp()) - 1577836800) * 1000)::bigint << 12"
	before := nextToken(t, app)
	for range 20 {
		testkit.Exec(t, owner, "TRUNCATE pgbaton.incarnation")
		after := nextToken(t, app)
		require.Greater(t, after, before)
		require.LessOrEqual(t, after, testkit.Value[int64](t, owner, clock)+32)
		before = after
	}
	// The sequence is lost altogether.
	testkit.Exec(t, owner, "ALTER SEQUENCE pgbaton.token RESTART; TRUNCATE pgbaton.incarnation")
	require.Greater(t, nextToken(t, app), before)

	// A clock that was set back is of no use: the sequence's own value counts.
	var far int64
	for _, back := range []time.Duration{time.Minute, time.Hour} {
		far = testkit.Value[int64](t, owner, clock) + back.Milliseconds()<<12
		testkit.Exec(t, owner, fmt.Sprintf("SELECT setval('pgbaton.token', %d); DELETE FROM pgbaton.incarnation", far))
		require.Equal(t, far+1<<26+32, nextToken(t, app))
	}
	// Set by hand, it goes on from where the last repair put it.
	testkit.Exec(t, owner, "ALTER SEQUENCE pgbaton.token RESTART")
	require.Greater(t, nextToken(t, app), far+32)

	// A clock that is a little behind is waited for.
	near := testkit.Value[int64](t, owner, clock) + 100<<12
	testkit.Exec(t, owner, fmt.Sprintf("SELECT setval('pgbaton.token', %d); DELETE FROM pgbaton.incarnation", near))
	after := nextToken(t, app)
	require.Greater(t, after, near)
	require.LessOrEqual(t, after, testkit.Value[int64](t, owner, clock)+32)
}

// No token is handed out before the server's clock is there; where the clock was set back, draws go on at a pace.
func TestTokens_WaitForTheClock(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	const clock = "((extract(epoch FROM clock_timestamp()) - 1577836800) * 4096000)::bigint"
	nextToken(t, app)
	for _, draw := range []string{"pgbaton.draw_token()", "pgbaton.next_token()", "pgbaton.lock_for_transaction(7, false, false, 0)"} {
		ahead := testkit.Value[int64](t, owner, "SELECT "+clock) + 200<<12
		testkit.Exec(t, owner, fmt.Sprintf("SELECT setval('pgbaton.token', %d)", ahead))
		token := testkit.Value[int64](t, app, "SELECT "+draw)
		require.Equal(t, ahead+32, token)
		require.LessOrEqual(t, token+31, testkit.Value[int64](t, owner, "SELECT "+clock))
	}

	ahead := testkit.Value[int64](t, owner, "SELECT "+clock) + time.Hour.Milliseconds()<<12
	testkit.Exec(t, owner, fmt.Sprintf("SELECT setval('pgbaton.token', %d)", ahead))
	const draws = 50
	began := time.Now()
	last := testkit.Value[int64](t, app, fmt.Sprintf("SELECT max(pgbaton.draw_token()) FROM generate_series(1, %d)", draws))
	require.GreaterOrEqual(t, time.Since(began), draws*time.Millisecond)
	require.Equal(t, ahead+32*draws, last)
}

// A session hears what the sequence stands at, and whether it had to be moved.
func TestTokens_BeginSession(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	begin := func(repaired bool) (drawn int64) {
		t.Helper()
		var got bool
		require.NoError(t, app.QueryRow(t.Context(), "SELECT repaired, last_drawn FROM pgbaton.begin_session()").Scan(&got, &drawn))
		require.Equal(t, repaired, got)
		return drawn
	}
	require.Positive(t, begin(false), "a new sequence is not in doubt")
	token := nextToken(t, app)
	require.Equal(t, token, begin(false))
	testkit.Exec(t, owner, "TRUNCATE pgbaton.incarnation")
	drawn := begin(true)
	require.Greater(t, drawn, token)
	require.Equal(t, drawn+32, nextToken(t, app))
	_, err := app.Exec(t.Context(), "SELECT nextval('pgbaton.token')")
	require.ErrorContains(t, err, "permission denied", "the sequence is nobody's but the owner's")
}

// Rows of other runs of the server, and of other tables, go with the next repair.
func TestTokens_RowsOfTheIncarnation(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	for range 5 {
		nextToken(t, app)
		testkit.Exec(t, owner, "UPDATE pgbaton.incarnation SET started = started - interval '1 s'")
	}
	nextToken(t, app)
	require.EqualValues(t, 1, testkit.Value[int64](t, owner, "SELECT count(*) FROM pgbaton.incarnation"))
}
