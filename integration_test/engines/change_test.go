package engines

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	both  = "both"
	inUse = "55006" // SQLSTATE
)

// ways are the two directions, as they follow one another.
var ways = [][2]string{{"session", "lease"}, {"lease", "session"}}

// TestChange leads a fleet of eight processes from session locks to leases and back, as docs/ground.md says, while each process takes
// few keys in all ways: no two hold one key at once, tokens rise over the whole run, and in each composition of the fleet every
// process is granted what it waits for.
func TestChange(t *testing.T) {
	f := newFleet(t, time.Minute)
	for _, way := range ways {
		f.change(way[0], way[1])
	}
	f.end()
	require.Empty(t, f.judge().overlaps)
	f.requireNothingLeft()
}

// change leads the fleet to another engine, and tells how long that took and what was granted meanwhile.
func (f *fleet) change(from, to string) {
	f.t.Helper()
	began := history.Now()
	require.Equal(f.t, from, f.recordBoth())
	f.requireProgress("both from " + from)
	f.roll(f.dsn, to)
	accepted := f.accept(to)
	f.requireProgress("both to " + to)
	f.roll(f.dsn, "")
	f.tell(from, to, began, accepted)
}

// tell tells how long a change took that is over, and what was granted meanwhile.
func (f *fleet) tell(from, to string, began, accepted int64) {
	f.t.Helper()
	s := span{from: began, to: history.Now()}
	for _, m := range f.alive {
		f.read(m)
	}
	tried, granted := f.count(s)
	testkit.Figure(f.t, "from %s to %s: %d operations, %d grants, %v, of which %v until no client of %s was there", from, to,
		tried, granted, time.Duration(s.to-s.from), time.Duration(accepted-s.from), from)
}

// roll restarts all processes one after the other, while the others go on. With an engine it makes sure before each that the
// record does not go on to that engine, because of the processes that were not yet restarted.
func (f *fleet) roll(dsn, refused string) {
	f.t.Helper()
	for i, m := range f.alive {
		if refused != "" {
			f.requireRefused(refused, f.alive[i:]...)
		}
		f.restart(m, dsn)
		f.requireProgress("the restart of " + m.name)
		f.t.Logf("%v: %s was restarted", time.Since(f.began).Round(time.Millisecond), m.name)
	}
}

// recordBoth has the operator record both engines, and returns the one before.
func (f *fleet) recordBoth() string {
	f.t.Helper()
	return testkit.Value[string](f.t, f.admin, "SELECT pgbaton.change_engine($1)", both)
}

// requireRefused checks that the record does not change because of some processes, which the error names.
func (f *fleet) requireRefused(engine string, old ...*member) {
	f.t.Helper()
	_, err := f.admin.Exec(f.t.Context(), "SELECT pgbaton.change_engine($1)", engine)
	require.Equal(f.t, inUse, pgerr.Code(err), "%v", err)
	for _, name := range names(old) {
		require.ErrorContains(f.t, err, name)
	}
}

// accept records an engine as soon as the server agrees, and returns when. Sessions of clients that were closed end in a moment.
func (f *fleet) accept(engine string) int64 {
	f.t.Helper()
	testkit.Eventually(f.t, "the record changes to "+engine, func() bool {
		_, err := f.admin.Exec(f.t.Context(), "SELECT pgbaton.change_engine($1)", engine)
		if err != nil {
			require.Equal(f.t, inUse, pgerr.Code(err), "%v", err)
		}
		return err == nil
	})
	return history.Now()
}
