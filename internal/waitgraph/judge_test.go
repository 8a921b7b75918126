package waitgraph

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// tribunal is a view for waits of one process; the ids of those that end are added to ended.
type tribunal struct {
	view

	detector *Detector
	waits    map[int64]*Watched
	ended    []int64
}

func newTribunal(t *testing.T) *tribunal {
	t.Helper()
	c := &tribunal{detector: New(nil, t.Name, ignore), waits: map[int64]*Watched{}}
	c.skip = func(Cycle) bool { return false }
	c.local = func(w Wait) (*Watched, bool) { return c.waits[w.ID], true }
	return c
}

func (c *tribunal) hear(t *testing.T, now time.Time, waits ...Wait) {
	t.Helper()
	for _, w := range waits {
		if c.waits[w.ID] == nil {
			watched := &Watched{detector: c.detector, holds: func() []Lock { return w.Holds }, end: func(err error) {
				require.ErrorIs(t, err, lockerr.Deadlock)
				c.ended = append(c.ended, w.ID)
			}}
			c.waits[w.ID] = watched
			processes.add(t.Name(), watched)
			t.Cleanup(func() { processes.remove(watched) })
		}
	}
	c.judge(c.detector, waits, now)
}

func TestJudge_TheSameCycle(t *testing.T) {
	t.Parallel()
	start := time.Now()
	t.Run("IsConfirmed", func(t *testing.T) {
		t.Parallel()
		c := newTribunal(t)
		waits := []Wait{want(2, 1, 2), want(3, 2, 1)}
		c.hear(t, start, waits...)
		c.hear(t, start.Add(apart-1), waits...)
		require.Empty(t, c.ended)
		c.hear(t, start.Add(apart), waits...)
		require.Equal(t, []int64{3}, c.ended)
		c.hear(t, start.Add(2*apart), waits...)
		require.Equal(t, []int64{3}, c.ended, "once")
	})
	t.Run("IsAnother", func(t *testing.T) {
		t.Parallel()
		c := newTribunal(t)
		c.hear(t, start, want(2, 1, 2), want(3, 2, 1))
		another := []Wait{want(1, 1, 2), want(2, 1, 7), want(3, 2, 1)}
		c.hear(t, start.Add(apart), another...)
		require.Empty(t, c.ended)
		c.hear(t, start.Add(2*apart), another...)
		require.Equal(t, []int64{3}, c.ended)
	})
	t.Run("WasInterrupted", func(t *testing.T) {
		t.Parallel()
		c := newTribunal(t)
		waits := []Wait{want(2, 1, 2), want(3, 2, 1)}
		c.hear(t, start, waits...)
		c.hear(t, start.Add(apart/2), waits[0])
		c.hear(t, start.Add(apart), waits...)
		require.Empty(t, c.ended)
	})
	t.Run("IsBrokenByAnOlderOne", func(t *testing.T) {
		t.Parallel()
		c := newTribunal(t)
		const a, b, x = 1, 2, 3
		c.hear(t, start, want(2, a, b), want(3, b, a, x))
		more := []Wait{want(0, x, b), want(1, b, a), want(2, a, b), want(3, b, a, x)}
		c.hear(t, start.Add(apart), more...)
		require.Empty(t, c.ended, "2 is to end now, and 3 only for the cycle with 0")
		c.hear(t, start.Add(2*apart), more...)
		require.ElementsMatch(t, []int64{2, 3}, c.ended)
	})
}

// Whoever judges: a wait does not end for a cycle of which another has ended.
func TestJudge_OneOfACycle(t *testing.T) {
	t.Parallel()
	c := newTribunal(t)
	waits := []Wait{want(1, 2, 1), want(2, 1, 2)}
	start := time.Now()
	c.hear(t, start, waits...)
	require.True(t, processes.finish(c.waits[1], waits, c.local), "by another graph")
	c.hear(t, start.Add(apart), waits...)
	require.Empty(t, c.ended)

	d := newTribunal(t)
	waits = []Wait{want(1, 2, 1), want(2, 1, 2)}
	d.hear(t, start, waits...)
	processes.remove(d.waits[1])
	d.hear(t, start.Add(apart), waits...)
	require.Empty(t, d.ended, "it has gone on")
}

// A cycle that is on the board is for those who see the board to judge: others may see more of it than this process.
func TestJudge_LeavesWhatIsOnTheBoard(t *testing.T) {
	t.Parallel()
	d := New(nil, t.Name, ignore)
	var ended []int64
	watch := func(wait Wait) *Watched {
		w := &Watched{detector: d, wait: wait, holds: func() []Lock { return wait.Holds }}
		w.end = func(error) { ended = append(ended, w.wait.ID) }
		processes.add(t.Name(), w)
		t.Cleanup(func() { processes.remove(w) })
		return w
	}
	cycle := []*Watched{watch(want(0, 2, 1)), watch(want(0, 1, 2))}
	watch(want(0, 7, 8))
	processes.reach(cycle, true)
	start := time.Now()
	for i := range time.Duration(3) {
		d.judgeOwn(processes.here(t.Name()), start.Add(i*apart))
		require.Empty(t, ended)
	}
	processes.reach(cycle[:1], false)
	for i := range time.Duration(2) {
		d.judgeOwn(processes.here(t.Name()), start.Add((i+3)*apart))
	}
	require.Equal(t, []int64{cycle[1].wait.ID}, ended)
}
