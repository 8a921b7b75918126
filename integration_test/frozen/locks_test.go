package frozen

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// A key is released while those who are first in line are frozen: all at once, or one after the other.
func TestFrozen_Locks(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		frozen int
		apart  time.Duration
		shared bool
	}{
		"alone":                  {frozen: 1},
		"several":                {frozen: 4},
		"one after the other":    {frozen: 4, apart: 400 * time.Millisecond},
		"shared":                 {frozen: 1, shared: true},
		"several of them shared": {frozen: 4, shared: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, lab.Database(t))
			holder := s.start("holder", worker.Command{})
			holder.Hold("c", "k")
			var waiters []*worker.Process
			for i := range c.frozen {
				p := s.start(named("waiter", i), worker.Command{})
				p.Begin(acquire("k", c.shared, 0))
				s.stands(named("waiter", i))
				waiters = append(waiters, p)
			}
			last := s.start("last", worker.Command{})
			call := last.Begin(acquire("k", false, 0))
			s.stands("last")
			for _, p := range waiters {
				s.freeze(p)
				time.Sleep(c.apart)
			}
			released := holder.Release("k")
			require.True(t, released.OK(), released.Err)
			s.cost("frozen: "+name, released.Called, call)
			require.True(t, last.Release("k").OK())
			s.thaw()
		})
	}
}

// The first in line freezes when it has got the gate, just before and after the key is free.
func TestFrozen_AtEveryMoment(t *testing.T) {
	t.Parallel()
	s := open(t, lab.Database(t))
	holder, last := s.start("holder", worker.Command{}), s.start("last", worker.Command{})
	for i := range 6 {
		holder.Hold("c", "k")
		p := s.start(named("waiter", i), worker.Command{})
		p.Begin(acquire("k", false, 0))
		s.stands(named("waiter", i))
		call := last.Begin(acquire("k", false, 0))
		s.stands("last")
		time.Sleep(time.Duration(i) * 70 * time.Millisecond) // somewhere in a slice
		frozen := s.freeze(p)
		require.True(t, holder.Release("k").OK())
		s.cost("frozen in the middle of a slice", frozen, call)
		require.True(t, last.Release("k").OK())
	}
	s.thaw()
}

// A writer that is frozen behind a reader does not keep other readers out.
func TestFrozen_WriterAmongReaders(t *testing.T) {
	t.Parallel()
	s := open(t, lab.Database(t))
	reader, writer, next := s.start("reader", worker.Command{}), s.start("writer", worker.Command{}), s.start("next", worker.Command{})
	require.True(t, reader.Do(acquire("k", true, 0)).Result.OK())
	writer.Begin(acquire("k", false, 0))
	s.stands("writer")
	call := next.Begin(acquire("k", true, 0))
	s.stands("next")
	frozen := s.freeze(writer)
	s.cost("a frozen writer among readers", frozen, call)
	s.thaw()
	require.True(t, next.Release("k").OK())
	require.True(t, reader.Release("k").OK())
}

// A set that is frozen while it waits for one of its keys keeps none of the others, and nobody from that one.
func TestFrozen_Sets(t *testing.T) {
	t.Parallel()
	gather := worker.Command{Do: worker.Gather, Client: "c", Key: "s", Count: 3, As: "s"}
	for name, sets := range map[string]int{"alone": 1, "several": 3} {
		for behind, next := range map[string]worker.Command{"a lock": acquire("s/1", false, 0), "a set": gather} {
			t.Run(name+", before "+behind, func(t *testing.T) {
				t.Parallel()
				s := open(t, lab.Database(t))
				holder, last := s.start("holder", worker.Command{}), s.start("last", worker.Command{})
				holder.Hold("c", "s/2") // the last of them in the common order; s/1 is the first
				var waiters []*worker.Process
				for i := range sets {
					p := s.start(named("set", i), worker.Command{})
					p.Begin(gather)
					s.stands(named("set", i))
					waiters = append(waiters, p)
				}
				call := last.Begin(next)
				s.stands("last")
				var since int64
				for _, p := range waiters {
					since = s.freeze(p)
				}
				if next.Do == gather.Do {
					since = history.Now()
					require.True(t, holder.Release("s/2").OK())
				}
				s.cost("frozen sets, "+name+", before "+behind, since, call)
				require.True(t, last.Release(next.As).OK())
				s.thaw()
			})
		}
	}
}
