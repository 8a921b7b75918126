package waitgraph

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// suspicion is a cycle that a later look is to confirm.
type suspicion struct {
	cycle Cycle // as the look saw it that found it
	seen  time.Time
}

// view is a graph whose waits are judged, with what earlier looks at it suspect.
type view struct {
	// local returns the wait of this process that an entry of the graph represents; false if it is not one of this
	// process, nil if it is over.
	local func(w Wait) (*Watched, bool)
	// skip reports that a cycle is not for this view.
	skip func(c Cycle) bool

	suspect map[int64]suspicion // by the wait that is to end
}

// judge ends the waits of a detector that must end. A wait must end in two looks, and a cycle that it closes with
// waits that go on must be there in both, and all the time between them.
//
// No two waits of a cycle end for it, in whichever processes. Processes that see the same waits find the same victims, and still
// do when some of those have ended; see [graph.victims]. Let one process end x for a cycle, and another one y, for
// which it must see a cycle of y and older waits. These were on the board before y, so the first has seen
// them with y, unless one of them had ended by then. But then the other had ended y by then, too, and could not say
// afterwards that y goes on, as the first has waited for it to say. Only a third wait that ends by itself at that
// moment makes a difference. Within a process, a wait does not end for a cycle of which another one has ended.
func (b *view) judge(d *Detector, waits []Wait, now time.Time) {
	g := newGraph(waits)
	victims := g.victims()
	ends := map[int64]bool{}
	for _, c := range victims {
		ends[c[0].ID] = true
	}
	suspect := map[int64]suspicion{}
	goesOn := func(w Wait) bool { return !ends[w.ID] }
	for _, c := range victims {
		w, _ := b.local(c[0])
		if w == nil || w.detector != d || b.skip(c) {
			continue
		}
		s := suspicion{c, now}
		if before, known := b.suspect[c[0].ID]; known && g.has(before.cycle) && all(before.cycle[1:], goesOn) {
			s = before
		}
		if now.Sub(s.seen) < s.cycle.apart() || !b.confirmed(g, s.cycle) || !processes.finish(w, s.cycle, b.local) {
			suspect[c[0].ID] = s
			continue
		}
		w.end(s.cycle.err())
	}
	b.suspect = suspect
}

func all(waits []Wait, is func(Wait) bool) bool {
	return !slices.ContainsFunc(waits, func(w Wait) bool { return !is(w) })
}

// confirmed reports whether the waits of a cycle have gone on since the look that found it, and hold what they did. The waits of
// this process are asked. For the others, the numbers of their looks show that their rows are right. They have found
// that out a while before the number is on the board, so the first new number may come from before; the one after it
// does not, since no look begins before the one before it was answered.
func (b *view) confirmed(g *graph, c Cycle) bool {
	const looks = 2
	for k, before := range c {
		if local, here := b.local(before); here {
			wanted := c[(k+len(c)-1)%len(c)].Wants.Key
			if local == nil || !local.current().holds(wanted) {
				return false
			}
			continue
		}
		if w, ok := g.wait(before.ID); !ok || w.Looks < before.Looks+looks {
			return false
		}
	}
	return true
}

// apart is for how long a cycle must have been seen. Where one of its waits is to share a key that the next one
// shares, it must be so long that the waiter would have been let in, if nobody wanted the key exclusively: a wait
// that has no session to wait with is tried once a second, and this one has lasted for [After] before it was seen.
func (c Cycle) apart() time.Duration {
	for k, w := range c {
		to := c[(k+1)%len(c)]
		if w.Wants.Mode == advisory.Shared && !slices.Contains(to.Holds, Lock{w.Wants.Key, advisory.Exclusive}) {
			return apartShared
		}
	}
	return apart
}

// err is why the youngest wait of the cycle ends.
func (c Cycle) err() error {
	names := make([]string, 0, len(c))
	for _, w := range c {
		names = append(names, w.Name)
	}
	if len(c) == 1 {
		return fmt.Errorf("%w: the goroutine that waits for %s holds it", lockerr.Deadlock, names[0])
	}
	return fmt.Errorf("%w: the waits for %s form a circle: release what is held and begin anew, best with all keys at once",
		lockerr.Deadlock, strings.Join(names, ", "))
}
