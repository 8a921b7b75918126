package storm

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// record is what one process has written down.
type record struct {
	process int
	group   string // processes of different groups do not always share a server, and so exclude nobody
	killed  int64  // when; 0 if it was not
	moving  bool   // the process was on two servers, whose tokens have nothing to do with each other
	events  []history.Event
}

// Overlap is a moment in which two could rely on one key: an old holder that was not told yet, and the next.
type Overlap struct {
	Key    string        `json:"key"`
	Length time.Duration `json:"ns"`
	// Silent reports that the old holder was not told at all: its release said nil, while its session had ended. It is
	// seen by a later holder in its process that was told.
	Silent bool `json:"silent"`
}

// verdict is what the histories of a storm show.
type verdict struct {
	violations []string
	overlaps   []Overlap
	grants     int
	repeated   int // runs within a window of one whose record is lost
}

func (v *verdict) violate(format string, args ...any) {
	v.violations = append(v.violations, fmt.Sprintf(format, args...))
}

// interval is a time at which a process was paused.
type interval struct{ from, to int64 }

// judgement is the state of a judge at work.
type judgement struct {
	verdict

	capacities map[string]int // of semaphores; what is not there is a lock
	failovers  []Failover
	stood      map[int][]interval
	told       map[*history.Grant]bool // whether the release or a loss said the truth by itself
}

// judge checks histories: exclusion and capacity on certain intervals, tokens, and the window of Once. A certain
// interval begins with the return of the acquire and ends with the call of the release or the news of a loss. The times
// at which the holder's process was paused do not count: it did nothing then. A failover may lose the record of a run.
func judge(records []record, capacities map[string]int, failovers ...Failover) verdict {
	j := &judgement{capacities: capacities, failovers: failovers, stood: map[int][]interval{}, told: map[*history.Grant]bool{}}
	groups := map[string][]*history.Grant{}
	runs := map[string][]history.Event{}
	moving := map[string]bool{}
	for _, r := range records {
		moving[r.group] = moving[r.group] || r.moving
		grants, _ := history.Grants(r.process, r.events, r.killed)
		j.grants += len(grants)
		groups[r.group] = append(groups[r.group], grants...)
		for _, e := range r.events {
			switch e.Kind {
			case history.Stood:
				j.stood[r.process] = append(j.stood[r.process], interval{e.From, e.At})
			case history.Ran:
				if !r.moving { // each server has runs of its own
					runs[r.group+e.Key] = append(runs[r.group+e.Key], e)
				}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		for _, g := range groups[name] {
			j.told[g] = g.Lost
		}
		history.Doubt(groups[name])
		keys := map[string][]*history.Grant{}
		for _, g := range groups[name] {
			keys[g.Key] = append(keys[g.Key], g)
		}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			grants := slices.SortedFunc(slices.Values(keys[key]), func(a, b *history.Grant) int { return cmp.Compare(a.Got, b.Got) })
			j.exclusion(key, grants)
			if !moving[name] {
				j.tokens(key, grants)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(runs)) {
		j.windows(key, runs[key])
	}
	return j.verdict
}

// weight returns how much of a key's capacity a grant takes.
func (j *judgement) weight(g *history.Grant) (weight, capacity int) {
	if capacity = j.capacities[g.Key]; capacity > 0 {
		return g.N, capacity
	}
	const all = 1 << 20
	if g.Mode == history.Shared {
		return 1, all
	}
	return all, all
}

// exclusion sweeps over the grants of a key, ordered by when they came.
func (j *judgement) exclusion(key string, grants []*history.Grant) {
	var active []*history.Grant
	for _, g := range grants {
		active = slices.DeleteFunc(active, func(a *history.Grant) bool { return a.End <= g.Got })
		weight, capacity := j.weight(g)
		total, reliable := weight, weight
		var lost, last *history.Grant // the holder that was told last that it had lost, and the last of all
		for _, a := range active {
			if j.common(a, g) <= 0 {
				continue
			}
			w, _ := j.weight(a)
			total += w
			if !a.Lost {
				reliable += w
			} else if lost == nil || j.common(a, g) > j.common(lost, g) {
				lost = a
			}
			last = a
		}
		active = append(active, g)
		switch {
		case total <= capacity:
		case reliable > capacity && !g.Lost:
			j.violate("%q was held by two at once, and both were told that all was well: %v; %v", key, last, g)
		case lost != nil:
			j.overlaps = append(j.overlaps, Overlap{key, time.Duration(j.common(lost, g)), !j.told[lost]})
		default: // the later one was lost, from its first moment on
			j.overlaps = append(j.overlaps, Overlap{key, time.Duration(j.common(last, g)), !j.told[g]})
		}
	}
}

// common returns for how long two could rely on what they were granted, the earlier one in a process that ran.
func (j *judgement) common(earlier, later *history.Grant) int64 {
	from, to := later.Got, min(earlier.End, later.End)
	length := to - from
	for _, s := range j.stood[earlier.Process] {
		length -= max(min(to, s.to)-max(from, s.from), 0)
	}
	return length
}

// tokens checks that they rise in the order of the grants. A lost grant may have an old one, which fences refuse.
func (j *judgement) tokens(key string, grants []*history.Grant) {
	if j.capacities[key] > 1 {
		if err := history.Distinct(grants); err != nil {
			j.violate("%q: %v", key, err)
		}
		return
	}
	var highest, writer *history.Grant
	for _, g := range grants {
		if g.Lost {
			continue
		}
		before, exclusive := writer, g.Mode != history.Shared
		if exclusive {
			before = highest
		}
		if before != nil && before.Token >= g.Token && (exclusive || before.Got < g.Called) {
			j.violate("%q: a token that does not rise: %v; %v", key, before, g)
		}
		if highest == nil || g.Token > highest.Token {
			highest = g
		}
		if exclusive && (writer == nil || g.Token > writer.Token) {
			writer = g
		}
	}
}

// windows checks that no two runs of Once can have begun, by the database's clock, within one window: each was recorded
// between the call of Once and the beginning of its func.
func (j *judgement) windows(key string, runs []history.Event) {
	slices.SortFunc(runs, func(a, b history.Event) int { return cmp.Compare(a.At, b.At) })
	for i := 1; i < len(runs); i++ {
		earlier, later := runs[i-1], runs[i]
		apart := time.Duration(max(later.At-earlier.From, earlier.At-later.From))
		switch {
		case apart >= worker.WindowOf(earlier.Key)-time.Millisecond:
		case forgotten(j.failovers, ownRecord, earlier.From, earlier.At, later.At):
			j.repeated++
		default:
			j.violate("%q ran twice in a window: at most %v apart", key, apart)
		}
	}
}
