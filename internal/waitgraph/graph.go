package waitgraph

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

	// Of a wait on the board.
	Holder int64 // that has published it
	Looks  int64 // how often that one had looked at the board
}

// Cycle is waits of which each holds what the one before wants, and the first what the last one wants. It begins
// with the youngest, the one that is to end.
type Cycle []Wait

// graph is waits, the oldest first, and the keys that connect them: a wait depends on all holders of the key that it
// wants. Waits and keys are known by their places. With keys between them there are as many edges as locks, however
// many hold one key and however many want it.
//
// A wait to share a key that is shared depends on its holders, too, for only an exclusive lock in the queue
// between them lets it wait. Whether there is one is not known here, since the wait for it need not hold anything
// and then is not watched; see [Cycle.apart].
type graph struct {
	waits   []Wait
	wants   []int   // the key that a wait wants
	holds   [][]int // the keys that a wait holds, each once
	holders [][]int // the waits that hold a key, the oldest first
	wanters [][]int

	// Of a search, used again by the next.
	from   []int // by which wait a wait was found
	found  []int // in which search that was
	passed []int // in which search a key was passed
	queue  []int
}

func newGraph(waits []Wait) *graph {
	waits = slices.Clone(waits)
	slices.SortFunc(waits, func(a, b Wait) int { return cmp.Compare(a.ID, b.ID) })
	g := &graph{waits: waits, wants: make([]int, len(waits)), holds: make([][]int, len(waits))}
	places := map[advisory.Key]int{}
	place := func(key advisory.Key) int {
		k, known := places[key]
		if !known {
			k = len(places)
			places[key] = k
			g.holders, g.wanters = append(g.holders, nil), append(g.wanters, nil)
		}
		return k
	}
	for i, w := range waits {
		k := place(w.Wants.Key)
		g.wants[i] = k
		g.wanters[k] = append(g.wanters[k], i)
		for _, l := range w.Holds {
			k := place(l.Key)
			if !slices.Contains(g.holds[i], k) {
				g.holds[i] = append(g.holds[i], k)
				g.holders[k] = append(g.holders[k], i)
			}
		}
	}
	return g
}

// victims finds the waits that must end so that no cycle is left, each with a shortest cycle that nobody else's end
// breaks. It lets one wait after the other take part, the oldest first, and ends those that close a cycle
// with older ones that go on. It follows that
//
//   - no cycle is left, since each would have been closed by its youngest wait;
//   - each victim is needed: those that close its cycle with it go on. In the cycle it is the youngest;
//   - a victim's end changes nothing for others: it never took part. So a process that looks at what is left when some have
//     ended finds the pause of the same victims;
//   - whether a wait must end depends on older waits only, not on those that come later.
func (g *graph) victims() []Cycle {
	if g.from == nil {
		g.from, g.found = make([]int, len(g.waits)), make([]int, len(g.waits))
		g.passed = make([]int, len(g.holders))
	}
	var found []Cycle
	core := g.core()
	for i := range g.waits {
		if !core[i] {
			continue
		}
		if c := g.closes(i, core); c != nil {
			core[i] = false
			found = append(found, c)
		}
	}
	return found
}

// core reports which waits may be in cycles. It leaves out, again and again, those that depend on no wait that is left, or
// on which none depends: all, where there is no cycle.
func (g *graph) core() []bool {
	in := make([]bool, len(g.waits))
	holders, wanters := make([]int, len(g.holders)), make([]int, len(g.wanters)) // how many are left
	for k := range g.holders {
		holders[k], wanters[k] = len(g.holders[k]), len(g.wanters[k])
	}
	wanted := make([]int, len(g.waits)) // how many of the keys that it holds are
	var out []int
	drop := func(i int) {
		if in[i] {
			in[i] = false
			out = append(out, i)
		}
	}
	for i := range g.waits {
		in[i] = true
		for _, k := range g.holds[i] {
			if wanters[k] > 0 {
				wanted[i]++
			}
		}
		if wanted[i] == 0 || holders[g.wants[i]] == 0 {
			drop(i)
		}
	}
	for ; len(out) > 0; out = out[1:] {
		i := out[0]
		for _, k := range g.holds[i] {
			if holders[k]--; holders[k] == 0 {
				for _, j := range g.wanters[k] {
					drop(j)
				}
			}
		}
		k := g.wants[i]
		if wanters[k]--; wanters[k] > 0 {
			continue
		}
		for _, j := range g.holders[k] {
			if wanted[j]--; wanted[j] == 0 {
				drop(j)
			}
		}
	}
	return in
}

// closes returns a shortest cycle that a wait closes with older ones that take part, or nil.
func (g *graph) closes(start int, takes []bool) Cycle {
	search := start + 1 // zero is none
	g.queue = append(g.queue[:0], start)
	for next := 0; next < len(g.queue); next++ {
		i := g.queue[next]
		k := g.wants[i]
		if g.passed[k] == search {
			continue
		}
		g.passed[k] = search
		if _, holds := slices.BinarySearch(g.holders[k], start); holds {
			return g.way(start, i)
		}
		for _, j := range g.holders[k] {
			if j > start {
				break
			}
			if takes[j] && g.found[j] != search {
				g.from[j], g.found[j] = i, search
				g.queue = append(g.queue, j)
			}
		}
	}
	return nil
}

// way is the way by which a search came from start to end.
func (g *graph) way(start, end int) Cycle {
	var c Cycle
	for i := end; i != start; i = g.from[i] {
		c = append(c, g.waits[i])
	}
	c = append(c, g.waits[start])
	slices.Reverse(c)
	return c
}

// wait finds a wait by its id.
func (g *graph) wait(id int64) (Wait, bool) {
	i, ok := slices.BinarySearchFunc(g.waits, id, func(w Wait, id int64) int { return cmp.Compare(w.ID, id) })
	if !ok {
		return Wait{}, false
	}
	return g.waits[i], true
}

// has reports whether a cycle of an earlier look is one of this graph, too.
func (g *graph) has(c Cycle) bool {
	for k := range c {
		from, here := g.wait(c[k].ID)
		to, there := g.wait(c[(k+1)%len(c)].ID)
		if !here || !there || !to.holds(from.Wants.Key) {
			return false
		}
	}
	return true
}

func (w Wait) holds(key advisory.Key) bool {
	return slices.ContainsFunc(w.Holds, func(l Lock) bool { return l.Key == key })
}
