package waitgraph

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
)

// want is a wait for a key by who holds others. A negative key is shared.
func want(id, key int64, holds ...int64) Wait {
	w := Wait{ID: id, Wants: lock(key)}
	for _, h := range holds {
		w.Holds = append(w.Holds, lock(h))
	}
	return w
}

func lock(key int64) Lock {
	if key < 0 {
		return Lock{advisory.Key{ID: -key}, advisory.Shared}
	}
	return Lock{advisory.Key{ID: key}, advisory.Exclusive}
}

func ids(cycles []Cycle) [][]int64 {
	var all [][]int64
	for _, c := range cycles {
		var of []int64
		for _, w := range c {
			of = append(of, w.ID)
		}
		all = append(all, of)
	}
	return all
}

func TestGraph_Cycles(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		waits []Wait
		found [][]int64
	}{
		{"nobody", nil, nil},
		{"two", []Wait{want(1, 2, 1), want(2, 1, 2)}, [][]int64{{2, 1}}},
		{"oneself", []Wait{want(1, 1, 1)}, [][]int64{{1}}},
		{"three", []Wait{want(1, 2, 1), want(3, 3, 2), want(2, 1, 3)}, [][]int64{{3, 2, 1}}},
		{
			"five",
			[]Wait{want(1, 2, 1), want(2, 3, 2, 9), want(3, 4, 3), want(4, 5, 4, 8), want(5, 1, 5)},
			[][]int64{{5, 1, 2, 3, 4}},
		},
		{"chain", []Wait{want(1, 2, 1), want(2, 3, 2), want(3, 4, 3), want(4, 5, 4)}, nil},
		{"many behind one", []Wait{want(1, 9, 1), want(2, 9, 2), want(3, 1, 3), want(4, 2, 4)}, nil},
		{"two apart", []Wait{want(1, 2, 1), want(2, 1, 2), want(3, 4, 3), want(4, 3, 4)}, [][]int64{{2, 1}, {4, 3}}},
		{
			"two through one, which is the youngest",
			[]Wait{want(1, 3, 1), want(2, 3, 2), want(3, 1, 2, 3), want(9, -1, 7)},
			[][]int64{{3, 1}},
		},
		{"the older one's end is not enough", []Wait{want(1, 2, 1), want(2, 1, 2), want(3, 1, 2)}, [][]int64{{2, 1}, {3, 1}}},
		{"the older one's end is enough", []Wait{want(1, 1, -9), want(2, 9, 1), want(3, 1, -9)}, [][]int64{{2, 1}}},
		{"shared waits for exclusive", []Wait{want(1, -2, 1), want(2, -1, 2)}, [][]int64{{2, 1}}},
		{"exclusive waits for shared", []Wait{want(1, 2, -1), want(2, 1, -2)}, [][]int64{{2, 1}}},
		{"shared waits for shared, for want of better knowledge", []Wait{want(1, -2, -1), want(2, -1, -2)}, [][]int64{{2, 1}}},
		{"a pair is another key", []Wait{want(1, 2, 1), {ID: 2, Wants: Lock{Key: advisory.Key{ID: 1, Pair: true}}, Holds: []Lock{lock(2)}}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for range 10 { // in any order
				rand.Shuffle(len(test.waits), func(i, j int) {
					test.waits[i], test.waits[j] = test.waits[j], test.waits[i]
				})
				found := newGraph(test.waits).victims()
				require.Equal(t, test.found, ids(found))
				for _, c := range found {
					require.True(t, newGraph(test.waits).has(c))
					require.False(t, newGraph(without(test.waits, c[len(c)-1].ID)).has(c))
				}
			}
		})
	}
}

func TestCycle_Apart(t *testing.T) {
	t.Parallel()
	require.Equal(t, apart, Cycle{want(2, 1, 2), want(1, 2, 1)}.apart())
	require.Equal(t, apart, Cycle{want(2, -1, 2), want(1, -2, 1)}.apart())
	require.Equal(t, apart, Cycle{want(2, 1, -2), want(1, 2, -1)}.apart())
	require.Equal(t, apartShared, Cycle{want(2, 1, -2), want(1, -2, -1)}.apart())
	require.Equal(t, apartShared, Cycle{want(1, -1, -1)}.apart())
}

// randomWaits makes up to n waits with ids from first on, among keys of which the first is a given one.
func randomWaits(random *rand.Rand, n int, first, key int64) []Wait {
	const keys = 10
	var waits []Wait
	for i := range 1 + random.IntN(n) {
		w := want(first+int64(i), key+random.Int64N(keys))
		for range random.IntN(4) {
			l := lock(key + random.Int64N(keys))
			if random.IntN(3) == 0 {
				l.Mode = advisory.Shared
			}
			w.Holds = append(w.Holds, l)
		}
		if random.IntN(3) == 0 {
			w.Wants.Mode = advisory.Shared
		}
		waits = append(waits, w)
	}
	return waits
}

// In random graphs of waits no cycle is left without the victims, and each is the youngest of a cycle that only its end
// breaks.
func TestGraph_Property(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible on purpose
	found, several := 0, 0
	for range 3000 {
		waits := randomWaits(random, 12, 0, 1)
		victims := newGraph(waits).victims()
		found += len(victims)
		if len(victims) > 1 {
			several++
		}
		require.Equal(t, cyclic(waits), len(victims) > 0)
		var ends []int64
		for _, c := range victims {
			ends = append(ends, c[0].ID)
		}
		left := without(waits, ends...)
		require.False(t, cyclic(left), "a cycle is left")
		for _, c := range victims {
			require.True(t, newGraph(waits).has(c))
			for _, w := range c[1:] {
				require.Less(t, w.ID, c[0].ID)
				require.NotContains(t, ends, w.ID)
			}
			require.True(t, cyclic(append(left, c[0])), "no need to end")
		}
	}
	require.Greater(t, found, 1000)
	require.Greater(t, several, 100)
}

// Whoever looks later, or does not see all, finds the same: when some victims have ended, and others have come.
func TestGraph_Agreement(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // reproducible on purpose
	found := 0
	for range 3000 {
		waits := randomWaits(random, 12, 0, 1)
		rest := newGraph(waits).victims()
		found += len(rest)
		var ended []int64
		rest = slices.DeleteFunc(rest, func(c Cycle) bool {
			ends := random.IntN(2) == 0
			if ends {
				ended = append(ended, c[0].ID)
			}
			return ends
		})
		later := append(without(waits, ended...), randomWaits(random, 5, 100, 1)...)
		again := newGraph(later).victims()
		require.GreaterOrEqual(t, len(again), len(rest))
		for i, c := range rest {
			require.Equal(t, c[0].ID, again[i][0].ID)
		}
		if len(again) > len(rest) {
			require.GreaterOrEqual(t, again[len(rest)][0].ID, int64(100))
		}
	}
	require.Greater(t, found, 1000)
}

// Of each of several cycles that have no wait in common exactly the youngest ends, whatever waits behind them.
func TestGraph_CyclesApart(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6)) //nolint:gosec // reproducible on purpose
	for range 1000 {
		order := random.Perm(40) // ids
		next := func() int64 {
			id := int64(order[0])
			order = order[1:]
			return id
		}
		var waits []Wait
		var youngest []int64
		for cycle := range 1 + random.Int64N(4) {
			n, last := 1+random.Int64N(5), int64(-1)
			for i := range n {
				id := next()
				last = max(last, id)
				waits = append(waits, want(id, 10*cycle+(i+1)%n+1, 10*cycle+i+1))
			}
			youngest = append(youngest, last)
			behind := 10*cycle + 1
			for i := range random.Int64N(4) { // one behind the other, behind the cycle
				waits = append(waits, want(next(), behind, 10*cycle+6+i))
				behind = 10*cycle + 6 + i
			}
		}
		var ends []int64
		for _, c := range newGraph(waits).victims() {
			ends = append(ends, c[0].ID)
		}
		slices.Sort(youngest)
		require.Equal(t, youngest, ends)
	}
}

func without(waits []Wait, ids ...int64) []Wait {
	return slices.DeleteFunc(slices.Clone(waits), func(w Wait) bool { return slices.Contains(ids, w.ID) })
}

// cyclic reports whether there is a cycle among waits, in the way that is easiest to believe.
func cyclic(waits []Wait) bool {
	n := len(waits)
	reach := make([][]bool, n)
	for i := range n {
		reach[i] = make([]bool, n)
		for j := range n {
			reach[i][j] = waits[j].holds(waits[i].Wants.Key)
		}
	}
	for k := range n {
		for i := range n {
			for j := range n {
				reach[i][j] = reach[i][j] || (reach[i][k] && reach[k][j])
			}
		}
	}
	for i := range n {
		if reach[i][i] {
			return true
		}
	}
	return false
}

// Graphs that would be large if every wait had an edge to every other one.
func largeGraphs(n int64) map[string][]Wait {
	graphs := map[string][]Wait{}
	for i := int64(1); i <= n; i++ {
		graphs["ManyBehindOne"] = append(graphs["ManyBehindOne"], want(i, 1, i+1))
		graphs["Chain"] = append(graphs["Chain"], want(i, i, i+1))
		graphs["Ring"] = append(graphs["Ring"], want(i, i%n+1, i))
		graphs["Crosswise"] = append(graphs["Crosswise"], want(i, 1+i%2, 2-i%2))
		graphs["Pairs"] = append(graphs["Pairs"], want(i, (i-1)^1, i-1))
	}
	return graphs
}

func BenchmarkGraph(b *testing.B) {
	for _, n := range []int64{1000, 10_000} {
		for name, waits := range largeGraphs(n) {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					newGraph(waits).victims()
				}
			})
		}
	}
}

func TestGraph_Large(t *testing.T) {
	t.Parallel()
	const n = 5000
	for name, victims := range map[string]int{"ManyBehindOne": 0, "Chain": 0, "Ring": 1, "Crosswise": n / 2, "Pairs": n / 2} {
		require.Len(t, newGraph(largeGraphs(n)[name]).victims(), victims, name)
	}
}
