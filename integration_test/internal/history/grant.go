package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"
)

// never is the end of what was not seen to end.
const never = math.MaxInt64

// Grant is an acquire that succeeded, with what became of it.
type Grant struct {
	Process int
	Op      int64
	Key     string
	Mode    string
	N       int // of permits; 0 for a lock
	Token   int64
	Called  int64
	Got     int64
	// End is when the holder could no longer be certain: release called, or loss told, or process killed.
	End int64
	// Over is when everybody may rely on it: release returned, loss told; never after a kill.
	Over int64
	// Lost reports that it ended otherwise than by a release that returned nil.
	Lost bool
}

func (g *Grant) String() string {
	return fmt.Sprintf("process %d op %d: %s %q token %d, held %d … %d, lost %v", g.Process, g.Op, g.Mode, g.Key, g.Token,
		g.Got, g.End, g.Lost)
}

// Counts reports how many acquires there were and what became of them.
type Counts struct {
	Tried, Granted, Refused, Unknown, Lost int
}

// Add adds the counts of another process.
func (c *Counts) Add(more Counts) {
	c.Tried += more.Tried
	c.Granted += more.Granted
	c.Refused += more.Refused
	c.Unknown += more.Unknown
	c.Lost += more.Lost
}

// Grants collects the grants of one process. killed is when it was killed, 0 if it was not.
func Grants(process int, events []Event, killed int64) ([]*Grant, Counts) {
	var counts Counts
	calls := map[int64]Event{}
	grants := map[int64]*Grant{}
	for _, e := range events {
		g := grants[e.Op]
		switch e.Kind {
		case Call:
			counts.Tried++
			calls[e.Op] = e
		case Granted:
			call := calls[e.Op]
			grants[e.Op] = &Grant{
				Process: process, Op: e.Op, Key: call.Key, Mode: call.Mode, N: call.N, Token: e.Token,
				Called: call.At, Got: e.At, End: never, Over: never, Lost: true,
			}
			counts.Granted++
		case Refused:
			counts.Refused++
		case Release:
			g.End = min(g.End, e.At)
		case Released:
			g.Over, g.Lost = e.At, false
		case Failed, Lost:
			g.End, g.Over = min(g.End, e.At), min(g.Over, e.At)
		}
	}
	counts.Unknown = counts.Tried - counts.Granted - counts.Refused
	list := make([]*Grant, 0, len(grants))
	for _, g := range grants {
		if killed != 0 {
			g.End = min(g.End, max(killed, g.Got))
		}
		if g.Lost {
			counts.Lost++
		}
		list = append(list, g)
	}
	return list, counts
}

// Doubt marks the grants whose release was answered within the process: when a server ends a session, its
// client may go on handing the key over for the moment until it knows. A hand-over is seen from outside only
// as a release that was followed, in its process, by a grant that was lost. So what came before a lost grant
// in a process counts as lost as well, as far back as another process's token shows that the tenure began.
func Doubt(grants []*Grant) {
	for _, list := range byKey(grants) {
		byToken := slices.SortedFunc(slices.Values(list), func(a, b *Grant) int { return cmp.Compare(a.Token, b.Token) })
		for i := len(byToken) - 1; i > 0; i-- {
			if later, earlier := byToken[i], byToken[i-1]; later.Lost && later.Process == earlier.Process {
				earlier.Lost = true
			}
		}
	}
}

func byKey(grants []*Grant) map[string][]*Grant {
	keys := map[string][]*Grant{}
	for _, g := range grants {
		keys[g.Key] = append(keys[g.Key], g)
	}
	for _, list := range keys {
		slices.SortFunc(list, func(a, b *Grant) int { return cmp.Compare(a.Got, b.Got) })
	}
	return keys
}

// Overlap is two certain intervals of one key that have a time in common, and are not both shared.
type Overlap struct{ Earlier, Later *Grant }

// Span is for how long they overlapped.
func (o Overlap) Span() int64 { return min(o.Earlier.End, o.Later.End) - o.Later.Got }

// Lost reports whether one of the holders lost its lock. A server that ends a session frees its locks a moment before the holder can
// know, and the key may even be handed over in that moment: such an overlap is not an error, but to be bounded.
func (o Overlap) Lost() bool { return o.Earlier.Lost || o.Later.Lost }

func (o Overlap) String() string {
	return fmt.Sprintf("two holders at once:\n%v\n%v", o.Earlier, o.Later)
}

// Overlaps returns which certain intervals overlap, each with the ones before that were certain for longest.
func Overlaps(grants []*Grant) (all []Overlap) {
	for _, list := range byKey(grants) {
		var writer, reader *Grant // of those so far, the one that was certain for longest
		for _, g := range list {
			for _, earlier := range []*Grant{writer, reader} {
				if earlier == nil || earlier.End <= g.Got || (earlier == reader && g.Mode == Shared) {
					continue
				}
				all = append(all, Overlap{earlier, g})
			}
			if g.Mode == Exclusive && (writer == nil || g.End > writer.End) {
				writer = g
			} else if g.Mode == Shared && (reader == nil || g.End > reader.End) {
				reader = g
			}
		}
	}
	return all
}

// Exclusion checks invariant I1: certain intervals of one key do not overlap, unless both are shared. It returns for how long those
// overlapped of which one was lost.
func Exclusion(grants []*Grant) (spans []int64, err error) {
	for _, o := range Overlaps(grants) {
		if !o.Lost() {
			return nil, fmt.Errorf("%v", o)
		}
		spans = append(spans, o.Span())
	}
	return spans, nil
}

// Tokens checks invariant I3: in the order of the grants of a key, an exclusive token is greater than every
// earlier one, a shared token than every earlier exclusive one.
func Tokens(grants []*Grant) error {
	for _, list := range byKey(grants) {
		var highest, writer *Grant
		for _, g := range list {
			before := writer
			if g.Mode == Exclusive {
				before = highest
			}
			if g.Lost { // its token may be an old one, which fences refuse
				continue
			}
			if before != nil && before.Token >= g.Token && (g.Mode == Exclusive || before.Got < g.Called) {
				return fmt.Errorf("a token that does not rise:\n%v\n%v", before, g)
			}
			if highest == nil || g.Token > highest.Token {
				highest = g
			}
			if g.Mode == Exclusive && (writer == nil || g.Token > writer.Token) {
				writer = g
			}
		}
	}
	return nil
}

// HandOvers returns how long a key went from one process to another that had waited for it, from the call of the release to the grant.
func HandOvers(grants []*Grant) (spans []int64) {
	for _, list := range byKey(grants) {
		for i := 1; i < len(list); i++ {
			before, next := list[i-1], list[i]
			if before.Process != next.Process && next.Called < before.End-int64(time.Millisecond) {
				spans = append(spans, next.Got-before.End)
			}
		}
	}
	return spans
}
