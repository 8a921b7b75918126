package pgbatonui

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// crowd is a listing that is being made.
type crowd struct {
	locks []pgbaton.LockInfo
	begun time.Time
}

// holds adds a holder, and returns its index.
func (c *crowd) holds(kind, name string) int {
	i := len(c.locks)
	c.locks = append(c.locks, pgbaton.LockInfo{
		State: stateHeld, Kind: kind, Name: name, Key: pgbaton.Name(name), Permits: 1, Token: pgbaton.Token(i + 1), Since: c.begun.Add(time.Duration(i) * time.Second),
		Client: "client-of-a-service-" + name, Host: "host-of-a-service-" + name, Process: i, Holder: int64(i + 1), Session: i,
	})
	return i
}

// waits adds a waiter behind others.
func (c *crowd) waits(kind, name string, behind ...int) int {
	i := c.holds(kind, name)
	l := &c.locks[i]
	l.State, l.Token, l.BlockedBy = "waiting", 0, behind
	return i
}

// crowds are listings of 20,000 rows.
func crowds() map[string]func(c *crowd) {
	const many = 10_000
	name := func(i int) string { return fmt.Sprintf("invoice/%d", i) }
	return map[string]func(c *crowd){
		"Pairs": func(c *crowd) {
			for i := range many {
				c.waits("lock", name(i), c.holds("lock", name(i)))
			}
		},
		"OneKey": func(c *crowd) {
			for range many {
				c.waits("lock", name(0), c.holds("lock", name(0)))
			}
		},
		"Chain": func(c *crowd) {
			for i := range many {
				above := c.holds("lock", name(i))
				c.waits("lock", name(i), above)
				if i > 0 {
					c.locks[above].BlockedBy = []int{above - 1} // whose goroutine waits for the one before
				}
			}
		},
		"Star": func(c *crowd) {
			c.holds("lock", "hub")
			hub := c.waits("lock", "hub", 0)
			for i := range many {
				held := c.holds("lock", name(i))
				c.locks[held].BlockedBy = []int{hub}
				c.waits("lock", name(i), held)
			}
		},
		"Terms": func(c *crowd) {
			for i := range many {
				c.waits(kindTerm, name(i), c.holds(kindTerm, name(i)))
			}
		},
		"Permits": func(c *crowd) {
			for i := range many {
				c.waits(kindPermit, name(i%mostSemaphores), c.holds(kindPermit, name(i%mostSemaphores)))
			}
		},
		"Unlisted": func(c *crowd) {
			for i := range 2 * many {
				c.locks[c.holds("lock", name(i))].Unlisted = 3
			}
		},
	}
}

// all is a listing of all crowds.
func all(c *crowd) {
	for _, fill := range crowds() {
		fill(c)
	}
}

// TestBounds: whatever there is, the page is of a size that a browser draws, and says how many more there are.
func TestBounds(t *testing.T) {
	t.Parallel()
	every := crowds()
	every["All"] = all
	for name, fill := range every {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := crowd{begun: time.Unix(1_800_000_000, 0)}
			fill(&c)
			begun := time.Now()
			r := &reading{at: c.begun, now: c.begun.Add(24 * time.Hour), locks: c.locks, missing: map[string]string{}}
			if name == "Permits" || name == "All" {
				for i := range mostSemaphores {
					r.semaphores = append(r.semaphores, semaphore{fmt.Sprintf("invoice/%d", i), 50, 0})
				}
				r.moreSemaphores = 7
			}
			s := newRenderer(true).render(r, nil)
			took := time.Since(begun)
			size, rows := 0, 0
			var page strings.Builder
			for _, part := range s.sections {
				size += len(part.html)
				rows += strings.Count(string(part.html), `class="row"`)
				page.WriteString(string(part.html))
			}
			testkit.Figure(t, "page of %d holders and waiters, %s: %d rows, %d kB, %v", len(c.locks), name, rows, size>>10, took.Round(time.Millisecond))
			require.Less(t, size, 3<<19)
			require.LessOrEqual(t, rows, 2500)
			require.LessOrEqual(t, strings.Count(page.String(), `class="tree"`), mostTrees)
			require.LessOrEqual(t, len(s.held), 2000)
			require.Contains(t, page.String(), map[string]string{
				"Pairs": "And 9900 more that are waited for", "OneKey": "and 9950 more waiters", "Chain": "more that are waited for",
				"Star": "It holds 9901 more that are waited for", "Terms": "And 9700 more", "Permits": "And 7 more", "All": "And 9700 more", "Unlisted": "So do 19980 more clients",
			}[name])
		})
	}
}

// TestTrees_Deep: a chain goes on in a tree of its own when it is too deep, and a waiter is shown once.
func TestTrees_Deep(t *testing.T) {
	t.Parallel()
	c := crowd{begun: time.Unix(1_800_000_000, 0)}
	const length = 20
	waits := -1
	for i := range length {
		held := c.holds("lock", fmt.Sprint("k", i))
		if i > 0 {
			c.locks[held].BlockedBy = []int{waits}
		}
		waits = c.waits("lock", fmt.Sprint("k", i), held)
	}
	trees, more := newForest(c.locks, func(l pgbaton.LockInfo) entry { return entry{What: l.Name} }).trees()
	require.Zero(t, more)
	shown := map[string]int{}
	var depth func(t tree) int
	depth = func(t tree) (deepest int) {
		for _, w := range t.Waiters {
			shown[w.What]++
			for _, b := range w.Below {
				deepest = max(deepest, depth(b))
			}
		}
		return deepest + 1
	}
	for _, tree := range trees {
		require.LessOrEqual(t, depth(tree), mostDepth+1)
	}
	require.Len(t, shown, length)
	for name, times := range shown {
		require.Equal(t, 1, times, name)
	}
}

// TestUnlisted: clients of one name are counted together, each once.
func TestUnlisted(t *testing.T) {
	t.Parallel()
	v := viewer{reading: &reading{locks: []pgbaton.LockInfo{
		{Client: "web", Host: "a", Process: 1, Unlisted: 3}, {Client: "web", Host: "a", Process: 1, Unlisted: 3}, {Client: "web", Host: "b", Process: 1, Unlisted: 4},
	}}}
	says, more := v.unlisted()
	require.Zero(t, more)
	require.Equal(t, []string{"web holds or waits for 7 more than it publishes by name."}, says)
}

// TestUnknown: nothing is said of what was never read, nor that it is as it was.
func TestUnknown(t *testing.T) {
	t.Parallel()
	failed := true
	h := newHandler(nil, Config{}, func(context.Context) *reading {
		r := showcase(time.Now())
		if failed {
			*r = reading{at: r.at, err: errAway, missing: map[string]string{}}
		}
		return r
	})
	h.readings.every = time.Millisecond
	defer h.Close()
	page := ask(h, "GET", "/", nil, nil).Body.String()
	require.Contains(t, page, "most –")
	require.Contains(t, page, "The database cannot be read.")
	for _, text := range []string{"as it was", "Nobody", "Nothing", "None", ">none<"} {
		require.NotContains(t, page, text)
	}
}

// TestPortable: what the portable schema does not know is not said to be nothing, and nothing is offered that it cannot do.
func TestPortable(t *testing.T) {
	t.Parallel()
	h := newHandler(nil, Config{FreeToken: token}, func(context.Context) *reading {
		r := showcase(time.Now())
		r.locks, r.losses, r.freeings = r.locks[5:6], nil, nil
		r.diagnosis.Portable, r.diagnosis.Engine = true, "lease"
		return r
	})
	defer h.Close()
	page := ask(h, "GET", "/", nil, nil).Body.String()
	require.Contains(t, page, "report/2026-11")
	for _, text := range []string{"Nobody waits", "Nothing, as long", "Nothing in the last", "data-held=", "Of leases that lapse"} {
		require.NotContains(t, page, text)
	}
	for _, text := range []string{"Waits are not on record", "keeps no record of it", "no requests to holders", "Waiting <b>–</b>"} {
		require.Contains(t, page, text)
	}
}
