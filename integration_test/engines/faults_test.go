package engines

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// TestChange_Faults is the change in both directions while processes that were not yet restarted are killed and frozen. One that is
// frozen for so long that the server ends its sessions comes back with the engine that it had, as long as there are others of it. One
// that is frozen until the fleet has left that engine is told that it has lost its locks, and then which engine there is.
func TestChange_Faults(t *testing.T) {
	const ttl = 15 * time.Second
	f := newFleet(t, ttl)
	for _, way := range testkit.Brief(ways, ways[:1]) {
		f.changeWithFaults(way[0], way[1])
	}
	f.end()
	var spans []int64
	for _, o := range f.judge().overlaps { // each is of one that was lost, see judge
		spans = append(spans, o.Span())
	}
	testkit.Figure(t, "overlaps with holders that were frozen, until they ran again and were told: %v", lab.NewSpread(spans))
	f.requireNothingLeft()
}

func (f *fleet) changeWithFaults(from, to string) {
	f.t.Helper()
	began := history.Now()
	require.Equal(f.t, from, f.recordBoth())
	f.requireProgress("both from " + from)
	old := slices.Clone(f.alive)
	back, late, killed := old[1], old[2], old[3]
	f.freeze(back)
	f.restart(old[0], f.dsn)
	f.requireProgress("the restart beside one that is frozen", others(f.alive, back)...)
	f.requireGone(back)
	f.thaw(back)
	f.requireProgress("the thaw of one of the old engine")
	f.requireRefused(to, back, late)
	f.freeze(late)
	f.kill(killed)
	f.join(f.dsn)
	for _, m := range old {
		if m != late && m != killed {
			f.restart(m, f.dsn)
			f.requireProgress("the restart of "+m.name, others(f.alive, late)...)
		}
	}
	accepted := f.accept(to) // when the server has ended the sessions of the one that is frozen
	f.requireProgress("both to "+to, others(f.alive, late)...)
	f.thaw(late)
	answer, ok := late.serving.Answer(lab.Hang)
	require.True(f.t, ok, "it goes on")
	require.Contains(f.t, answer.Fail, fmt.Sprintf("this database has the engine %q", to))
	late.Do(worker.Command{Do: worker.Close, Client: late.client})
	f.open(late, f.dsn)
	f.requireProgress("the restart of " + late.name)
	f.roll(f.dsn, "")
	f.tell(from, to, began, accepted)
}

// freeze stops a process, soon after it was granted something.
func (f *fleet) freeze(m *member) {
	f.t.Helper()
	f.requireProgress("before it is frozen", m)
	m.Signal(syscall.SIGSTOP)
}

func (f *fleet) thaw(m *member) {
	f.t.Helper()
	m.Signal(syscall.SIGCONT)
}

// requireGone waits until the server counts a process no longer as a client.
func (f *fleet) requireGone(m *member) {
	f.t.Helper()
	testkit.WaitFor(f.t, f.admin, "SELECT NOT EXISTS (SELECT FROM pgbaton.lock_client AS c WHERE c.name = $1 AND pgbaton.client_lives(c))", m.name)
}

// others are those processes that are not a certain one.
func others(members []*member, but *member) []*member {
	return slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return m == but })
}
