package contract

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 6: what a process held that was killed, or is frozen, is free without anything that it does. A frozen one, when it
// goes on, is told before anything says that it has the key.
func TestLaw6_TheServerFreesIt(t *testing.T) { run(t, 6, freed) }

func freed(s *site) {
	next := s.open(pgbaton.Config{TTL: short})
	for i := range testkit.Rounds(2) {
		key := fmt.Sprint("killed/", i)
		holder := s.worker(short)
		held := holder.Hold("c", key)
		killed := holder.Kill()
		lock := s.acquire(next, pgbaton.Name(key))
		testkit.Figure(s.t, "%s: SIGKILL of the holder to the next grant %v", s.name, time.Duration(history.Now()-killed))
		require.Greater(s.t, int64(lock.Token()), held.Token)
		s.release(lock)
	}

	holder := s.worker(short)
	held := holder.Hold("c", "frozen")
	guard := holder.Begin(worker.Command{Do: worker.Guard, Client: "c", Key: "frozen", As: "frozen"})
	testkit.Eventually(s.t, "the holder looks", func() bool { return len(holder.Events()) > 0 })
	frozen := history.Now()
	holder.Signal(syscall.SIGSTOP)
	lock := s.acquire(next, pgbaton.Name("frozen"))
	granted := worker.Result{At: history.Now()}
	testkit.Figure(s.t, "%s: SIGSTOP of the holder to the next grant %v (TTL %v)", s.name, time.Duration(granted.At-frozen), short)
	require.Greater(s.t, int64(lock.Token()), held.Token)
	thawed := history.Now()
	holder.Signal(syscall.SIGCONT)
	steps := guard.Wait().Steps
	s.ops.Add(int64(len(steps)))
	worker.CheckThaw(s.t, steps, granted, thawed)
	require.True(s.t, steps[1].Lost, "another one has it: %+v", steps[1])
	s.release(lock)
	s.closes(holder)
}
