package deadlock

import (
	"cmp"
	"slices"

	"github.com/pgbaton/pgbaton/internal/advisory"
)

// Lock is a key in a mode, held or wanted.
type Lock struct {
	Key  advisory.Key
	Mode advisory.Mode
}

// Wait is a wait for a lock by somebody who holds others. A greater ID is a younger wait.
type Wait struct {
	ID    int64
	Name  string // of the key, for people
	Wants Lock
	Holds []Lock
	Long  bool // it has waited for so long that it is not for want of a session to wait with
}

// Cycle is waits of which each holds what the one before wants, and the first what the last one wants. It begins
// with the youngest, the one that is to end.
type Cycle []Wait

// graph says for each wait which others it depends on, by their places in waits, the oldest first.
type graph struct {
	waits []Wait
	next  [][]int
	ended []bool // as if they waited no more
}

func newGraph(waits []Wait) *graph {
	waits = slices.Clone(waits)
	slices.SortFunc(waits, func(a, b Wait) int { return cmp.Compare(a.ID, b.ID) })
	g := &graph{waits: waits, next: make([][]int, len(waits)), ended: make([]bool, len(waits))}
	holders, writers := map[advisory.Key][]int{}, map[advisory.Key]bool{}
	for i, w := range waits {
		for _, l := range w.Holds {
			holders[l.Key] = append(holders[l.Key], i)
		}
		if w.Wants.Mode == advisory.Exclusive {
			writers[w.Wants.Key] = true
		}
	}
	for i, w := range waits {
		for _, j := range holders[w.Wants.Key] {
			if blocks(waits[j], w, writers[w.Wants.Key]) {
				g.next[i] = append(g.next[i], j)
			}
		}
	}
	return g
}

// blocks says whether a wait has to wait for what the holder of its key waits for. Who wants to share a key that is
// shared waits for somebody in the queue who wants it exclusively, and so for the holders as well. That one need
// not be among the waits that are known here, since he may hold nothing; but then the wait must be a long one.
func blocks(holder, w Wait, writer bool) bool {
	for _, l := range holder.Holds {
		if l.Key == w.Wants.Key {
			return l.Mode == advisory.Exclusive || w.Wants.Mode == advisory.Exclusive || writer || w.Long
		}
	}
	return false
}

// cycles finds a cycle for every wait that must end so that no cycle is left. All who look at the same waits find
// the same ones: the youngest wait of all that are in a cycle ends, then the youngest of what is left.
func (g *graph) cycles() []Cycle {
	var found []Cycle
	for i := len(g.waits) - 1; i >= 0; i-- {
		if c := g.through(i); c != nil {
			g.ended[i] = true
			found = append(found, c)
		}
	}
	return found
}

// through returns a shortest cycle through a wait in which it is the youngest, or nil.
func (g *graph) through(start int) Cycle {
	from := make([]int, len(g.waits))
	for i := range from {
		from[i] = -1
	}
	for queue := []int{start}; len(queue) > 0; queue = queue[1:] {
		for _, j := range g.next[queue[0]] {
			switch {
			case j == start:
				return g.path(from, start, queue[0])
			case j < start && !g.ended[j] && from[j] < 0:
				from[j] = queue[0]
				queue = append(queue, j)
			}
		}
	}
	return nil
}

// path is the way by which a search came from start to end.
func (g *graph) path(from []int, start, end int) Cycle {
	var c Cycle
	for i := end; i != start; i = from[i] {
		c = append(c, g.waits[i])
	}
	c = append(c, g.waits[start])
	slices.Reverse(c)
	return c
}

// has says whether a cycle of an earlier look is one of this graph, too.
func (g *graph) has(c Cycle) bool {
	place := func(w Wait) int {
		i, ok := slices.BinarySearchFunc(g.waits, w.ID, func(w Wait, id int64) int { return cmp.Compare(w.ID, id) })
		if !ok {
			return -1
		}
		return i
	}
	for k := range c {
		from, to := place(c[k]), place(c[(k+1)%len(c)])
		if from < 0 || !slices.Contains(g.next[from], to) {
			return false
		}
	}
	return true
}

// same says whether two cycles are of the same waits in the same order.
func (c Cycle) same(other Cycle) bool {
	return slices.EqualFunc(c, other, func(a, b Wait) bool { return a.ID == b.ID })
}
