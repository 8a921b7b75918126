package deadlock

import (
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

func long(w Wait) Wait {
	w.Long = true
	return w
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
		{"two apart", []Wait{want(1, 2, 1), want(2, 1, 2), want(3, 4, 3), want(4, 3, 4)}, [][]int64{{4, 3}, {2, 1}}},
		{
			"two through one, which is the youngest",
			[]Wait{want(1, 3, 1), want(2, 3, 2), want(3, 1, 2, 3), want(9, -1, 7)},
			[][]int64{{3, 1}},
		},
		{"the next after the youngest has gone", []Wait{want(1, 2, 1), want(2, 1, 2), want(3, 1, 2)}, [][]int64{{3, 1}, {2, 1}}},
		{"shared waits for exclusive", []Wait{want(1, -2, 1), want(2, -1, 2)}, [][]int64{{2, 1}}},
		{"exclusive waits for shared", []Wait{want(1, 2, -1), want(2, 1, -2)}, [][]int64{{2, 1}}},
		{"shared does not wait for shared", []Wait{want(1, -2, -1), want(2, -1, -2)}, nil},
		{
			"shared behind one that wants it exclusively",
			[]Wait{want(1, -2, -1), want(2, -1, -2), want(3, 1), want(4, 2)},
			[][]int64{{2, 1}},
		},
		{"only in one of two", []Wait{want(1, -2, -1), want(2, -1, -2), want(3, 1)}, nil},
		{"shared, for long", []Wait{long(want(1, -2, -1)), long(want(2, -1, -2))}, [][]int64{{2, 1}}},
		{"a pair is another key", []Wait{want(1, 2, 1), {ID: 2, Wants: Lock{Key: advisory.Key{ID: 1, Pair: true}}, Holds: []Lock{lock(2)}}}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for range 10 { // in any order
				rand.Shuffle(len(test.waits), func(i, j int) {
					test.waits[i], test.waits[j] = test.waits[j], test.waits[i]
				})
				g := newGraph(test.waits)
				found := g.cycles()
				require.Equal(t, test.found, ids(found))
				for _, c := range found {
					require.True(t, newGraph(test.waits).has(c))
					require.False(t, newGraph(slices.DeleteFunc(slices.Clone(test.waits), func(w Wait) bool {
						return w.ID == c[len(c)-1].ID
					})).has(c))
				}
			}
		})
	}
}

// In random graphs of waits every cycle found is one, its first is its youngest, and without those no cycle is left.
func TestGraph_Property(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible on purpose
	withCycles := 0
	for range 2000 {
		n := 1 + random.IntN(12)
		var waits []Wait
		for i := range n {
			w := want(int64(i), 1+random.Int64N(10))
			for range random.IntN(4) {
				key := 1 + random.Int64N(10)
				if random.IntN(3) == 0 {
					key = -key
				}
				w.Holds = append(w.Holds, lock(key))
			}
			if random.IntN(3) == 0 {
				w.Wants.Mode = advisory.Shared
			}
			w.Long = random.IntN(4) == 0
			waits = append(waits, w)
		}
		g := newGraph(waits)
		reach := closure(g)
		cyclic := slices.ContainsFunc(waits, func(w Wait) bool { return reach[w.ID][w.ID] })
		found := g.cycles()
		require.Equal(t, cyclic, len(found) > 0)
		ended := map[int64]bool{}
		for _, c := range found {
			withCycles++
			require.True(t, g.has(c))
			for _, w := range c[1:] {
				require.Less(t, w.ID, c[0].ID)
				require.False(t, ended[w.ID], "it has ended before")
			}
			ended[c[0].ID] = true
		}
		for i := range g.next {
			if ended[int64(i)] {
				g.next[i] = nil
			}
		}
		for id, to := range closure(g) {
			require.False(t, to[id], "a cycle is left")
		}
	}
	require.Greater(t, withCycles, 200)
}

// closure says from which wait a way leads to which.
func closure(g *graph) map[int64]map[int64]bool {
	n := len(g.waits)
	reach := map[int64]map[int64]bool{}
	for i := range n {
		reach[int64(i)] = map[int64]bool{}
		for _, j := range g.next[i] {
			reach[int64(i)][int64(j)] = true
		}
	}
	for k := range int64(n) {
		for i := range int64(n) {
			for j := range int64(n) {
				if reach[i][k] && reach[k][j] {
					reach[i][j] = true
				}
			}
		}
	}
	return reach
}
