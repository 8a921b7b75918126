package frozen

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// patience is how long a waiter that cannot be seen in the server has to get into its line.
const patience = time.Second

func (s *scene) waits(name string, pooled bool) {
	s.t.Helper()
	if pooled {
		time.Sleep(patience)
		return
	}
	s.heads(name)
}

// Processes that wait for permits are frozen, and hold none: what is free goes to those behind them.
func TestFrozen_Semaphores(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pooled []bool // of the waiters that freeze: they reach the server through a pooler
		last   bool   // of the one that does not
		apart  time.Duration
	}{
		"direct alone":                {pooled: []bool{false}},
		"direct several":              {pooled: []bool{false, false, false}},
		"direct one after the other":  {pooled: []bool{false, false, false}, apart: 400 * time.Millisecond},
		"pooled alone":                {pooled: []bool{true}, last: true},
		"pooled several":              {pooled: []bool{true, true, true}, last: true},
		"pooled one after the other":  {pooled: []bool{true, true, true}, last: true, apart: 400 * time.Millisecond},
		"mixed, and last one direct":  {pooled: []bool{false, true, false, true}, apart: 200 * time.Millisecond},
		"mixed, and last one pooled":  {pooled: []bool{true, false, true, false}, last: true, apart: 200 * time.Millisecond},
		"mixed, at once, and direct":  {pooled: []bool{true, false, false}},
		"mixed, at once, and pooled":  {pooled: []bool{false, true, true}, last: true},
		"direct, behind pooled ones":  {pooled: []bool{true, true}, apart: 100 * time.Millisecond},
		"pooled, behind a direct one": {pooled: []bool{false}, last: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, lab.Database(t))
			through := lab.PgBouncer(t, s.dsn, "transaction")
			client := testclient.New(t, s.dsn, nil)
			_, err := client.Semaphore(t.Context(), "s", 5)
			require.NoError(t, err)
			process := func(name string, pooled bool) *worker.Process {
				if pooled {
					return s.start(name, worker.Command{DSN: through})
				}
				return s.start(name, worker.Command{})
			}
			holder, last := process("holder", false), process("last", c.last)
			require.True(t, holder.Do(acquire("s", false, 5)).Result.OK())
			var waiters []*worker.Process
			for i, pooled := range c.pooled {
				p := process(named("waiter", i), pooled)
				p.Begin(worker.Command{Do: worker.Acquire, Client: "c", Key: "s", As: "1", N: 1})
				p.Begin(worker.Command{Do: worker.Acquire, Client: "c", Key: "s", As: "2", N: 2})
				waiters = append(waiters, p)
				s.waits(named("waiter", i), pooled)
			}
			call := last.Begin(acquire("s", false, 3))
			s.waits("last", c.last)
			for _, p := range waiters {
				s.freeze(p)
				time.Sleep(c.apart)
			}
			// What was asked for before is answered by now: a claim under way may be granted to a frozen process, which
			// then is a frozen holder.
			time.Sleep(patience)
			released := holder.Release("s")
			require.True(t, released.OK(), released.Err)
			s.cost("frozen: "+name, released.Called, call)
			require.True(t, last.Release("s").OK())
			s.thaw()
		})
	}
}

// Permits that are free are granted though a process that waits for more of them than there are is frozen, also to
// processes that hold some.
func TestFrozen_SemaphoreIsNotFull(t *testing.T) {
	t.Parallel()
	s := open(t, lab.Database(t))
	_, err := testclient.New(t, s.dsn, nil).Semaphore(t.Context(), "s", 5)
	require.NoError(t, err)
	a, b, c := s.start("a", worker.Command{}), s.start("b", worker.Command{}), s.start("c", worker.Command{})
	for _, p := range []*worker.Process{a, b} {
		require.True(t, p.Do(worker.Command{Do: worker.Acquire, Client: "c", Key: "s", As: "1", N: 1}).Result.OK())
	}
	for range 2 {
		c.Begin(acquire("s", false, 4))
	}
	s.waits("c", false)
	frozen := s.freeze(c)
	for _, p := range []*worker.Process{a, b} {
		s.cost("free permits behind a frozen waiter", frozen,
			p.Begin(worker.Command{Do: worker.Acquire, Client: "c", Key: "s", As: "2", N: 1}))
	}
	s.thaw()
}

// Candidates hold nothing while they wait.
func TestFrozen_Candidates(t *testing.T) {
	t.Parallel()
	s := open(t, lab.Database(t))
	candidate := worker.Command{Do: worker.Lead, Client: "c", Key: "l"}
	elected := func(p *worker.Process) int64 {
		var at int64
		testkit.Eventually(t, "it leads", func() bool {
			grants, _ := p.History()
			for _, g := range grants {
				at = g.Got
			}
			return len(grants) > 0
		})
		return at
	}
	leader := s.start("leader", worker.Command{})
	leader.Do(candidate)
	elected(leader)
	var candidates []*worker.Process
	for i := range 3 {
		p := s.start(named("candidate", i), worker.Command{})
		p.Do(candidate)
		candidates = append(candidates, p)
	}
	last := s.start("last", worker.Command{})
	last.Do(candidate)
	time.Sleep(patience)
	for _, p := range candidates {
		s.freeze(p)
		time.Sleep(patience)
	}
	ended := leader.Kill()
	lab.Report(t, "frozen candidates", lab.NewSpread([]int64{elected(last) - ended}), law)
	s.thaw()
}
