package schema_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// run is what pgbaton.start_run tells.
type run struct {
	Due         bool
	Last, Next  *time.Time
	Disbelieved bool
}

func startRun(t *testing.T, conn *pgx.Conn, resource, window string, token any, retryFailed, force bool) run {
	t.Helper()
	rows, err := conn.Query(t.Context(),
		"SELECT due, last_run, next_run, disbelieved FROM pgbaton.start_run($1, $2::text::interval, $3, $4, $5)",
		resource, window, token, retryFailed, force)
	require.NoError(t, err)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[run])
	require.NoError(t, err)
	return r
}

// A run that claims to have begun in a future that no difference between clocks explains is not believed.
func TestStartRun_DisbelievesTheFuture(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ahead, window string
		believed      bool
	}{
		{"50 s", "1 s", true},
		{"70 s", "1 s", false},
		{"2 h", "24 h", true},
		{"3 h", "24 h", false},
		{"30 years", "24 h", false},
	} {
		t.Run(c.ahead+"/"+c.window, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			job := c.ahead + c.window
			require.True(t, startRun(t, app, job, c.window, 5, false, false).Due)
			testkit.Exec(t, owner, "UPDATE pgbaton.last_run SET ran_at = clock_timestamp() + $2::text::interval WHERE resource = $1", job, c.ahead)
			for _, token := range []any{nil, 6} {
				r := startRun(t, app, job, c.window, token, false, false)
				require.Equal(t, !c.believed, r.Due)
				require.Equal(t, !c.believed, r.Disbelieved)
				require.Equal(t, c.believed, r.Next != nil)
				require.NotNil(t, r.Last)
			}
			r := startRun(t, app, job, c.window, 7, false, false)
			require.False(t, r.Due, "what was recorded instead counts")
			require.False(t, r.Disbelieved)
			if !c.believed { // clients that do not know of it have it right, too
				testkit.Exec(t, owner, "UPDATE pgbaton.last_run SET ran_at = ran_at + $2::text::interval WHERE resource = $1", job, c.ahead)
				require.True(t, testkit.Value[bool](t, app, "SELECT due FROM pgbaton.begin_run($1, $2::text::interval, 8)", job, c.window))
			}
		})
	}
}

// How a run has ended is recorded, read, and lets it be run again.
func TestStartRun_Results(t *testing.T) {
	t.Parallel()
	_, appURL := newDatabase(t)
	app := testkit.Connect(t, appURL)
	const day = "24 h"
	look := func(want string) {
		t.Helper()
		require.Equal(t, want, testkit.Value[string](t, app, `SELECT coalesce((SELECT concat_ws(' ', token,
			CASE WHEN ended_at >= last_run THEN 'ended' END, failed::text, error) FROM pgbaton.look_run('job')), 'never')`))
	}
	end := func(token int, failed bool, text any) bool {
		t.Helper()
		return testkit.Value[bool](t, app, "SELECT pgbaton.end_run('job', $1, $2, $3)", token, failed, text)
	}
	look("never")
	require.False(t, end(5, false, nil))
	require.True(t, startRun(t, app, "job", day, 5, true, false).Due)
	look("5")
	require.True(t, startRun(t, app, "job", day, nil, true, false).Due, "one that does not say that it has ended")
	require.False(t, startRun(t, app, "job", day, nil, false, false).Due)
	require.True(t, end(5, true, "it broke"))
	look("5 ended true it broke")
	require.False(t, startRun(t, app, "job", day, 6, false, false).Due)
	require.False(t, startRun(t, app, "job", day, 5, true, false).Due, "one grant is one run")
	require.False(t, startRun(t, app, "job", day, 4, true, true).Due, "the token of a lock that was lost since")
	look("5 ended true it broke")
	require.True(t, startRun(t, app, "job", day, 6, true, false).Due)
	look("6")
	require.False(t, end(5, false, nil), "a late word of an older run")
	look("6")
	require.True(t, end(6, false, "of no interest"))
	look("6 ended false")
	require.False(t, startRun(t, app, "job", day, 7, true, false).Due, "it has not failed")
	require.True(t, startRun(t, app, "job", day, 7, false, true).Due)
	require.True(t, testkit.Value[bool](t, app, "SELECT pgbaton.forget_run('job')"))
	require.False(t, testkit.Value[bool](t, app, "SELECT pgbaton.forget_run('job')"))
	require.False(t, end(7, false, nil))
	look("never")

	// A client that does not say how its runs end has none that failed.
	require.True(t, testkit.Value[bool](t, app, "SELECT due FROM pgbaton.begin_run('job', '24 h', 8)"))
	require.False(t, startRun(t, app, "job", day, 9, true, false).Due)
	require.True(t, end(8, true, "x"))
	testkit.Exec(t, app, "SELECT pgbaton.end_run('job', 8, true, repeat('ö', 100000))")
	require.Equal(t, 1000, testkit.Value[int](t, app, "SELECT length(error) FROM pgbaton.look_run('job')"))
	requireCode(t, app, "22023", "SELECT pgbaton.end_run('job', 8, NULL, NULL)")
}

// The end of a run is on disk as its beginning is; see TestBeginRun_IsDurable.
func TestStartRun_IsDurable(t *testing.T) {
	t.Parallel()
	_, appURL := newDatabase(t)
	app := testkit.Connect(t, appURL)
	testkit.Exec(t, app, "SELECT pgbaton.start_run('job', '1 h', 5, false, false)")
	for _, call := range []string{"start_run('job', '1 h', 6, false, true)", "end_run('job', 6, true, NULL)"} {
		testkit.Exec(t, app, "SET synchronous_commit = off; BEGIN; SELECT pgbaton."+call)
		require.Equal(t, "local", testkit.Value[string](t, app, "SHOW synchronous_commit"))
		testkit.Exec(t, app, "COMMIT")
	}
}

// The first run ever of a name, recorded by two whose locks followed on one another: when the newer lock's call begins, the older one's row
// is not to be seen yet. The window counts all the same.
func TestStartRun_FirstOfAll(t *testing.T) {
	t.Parallel()
	_, appURL := newDatabase(t)
	app, other, watch := testkit.Connect(t, appURL), testkit.Connect(t, appURL), testkit.Connect(t, appURL)
	for _, c := range []struct {
		job, window        string
		retryFailed, force bool
		due                bool
	}{
		{"in its window", "1 h", false, false, false},
		{"after it", "1 us", false, false, true},
		{"a failed one", "1 h", true, false, true},
		{"forced", "1 h", false, true, true},
	} {
		testkit.Exec(t, app, "BEGIN")
		require.True(t, startRun(t, app, c.job, c.window, 5, false, false).Due)
		second := make(chan error, 1)
		var due bool
		go func() {
			second <- other.QueryRow(t.Context(), "SELECT due FROM pgbaton.start_run($1, $2::text::interval, 6, $3, $4)",
				c.job, c.window, c.retryFailed, c.force).Scan(&due)
		}()
		waitsForLock(t, watch, pidOf(other))
		testkit.Exec(t, app, "COMMIT")
		require.NoError(t, <-second)
		require.Equal(t, c.due, due, c.job)
	}
}
