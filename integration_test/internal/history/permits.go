package history

import (
	"cmp"
	"fmt"
	"slices"
)

// Resize is a change of a semaphore's capacity, which took effect between Called and Done. The first is its
// creation.
type Resize struct {
	Called, Done int64
	Capacity     int
}

// allowed is the largest capacity that may have been in force at some time in an interval.
func allowed(resizes []Resize, from, to int64) int {
	most := 0
	for i, r := range resizes {
		if r.Called <= to && (i+1 == len(resizes) || resizes[i+1].Done >= from) {
			most = max(most, r.Capacity)
		}
	}
	return most
}

// certain reports that somebody could rely on the grant to its end: it was released as held, or its holder was
// killed. What was lost otherwise may have been granted to others a moment before its holder could know.
func (g *Grant) certain() bool { return !g.Lost || g.Over == never }

// claim is the first token of the claim on the server behind a grant of permits: what is handed over within the
// process has a later one of its 32.
func (g *Grant) claim() int64 { return g.Token &^ 31 }

// Permits checks invariant I2 for one semaphore: at no time did all holders together hold more permits than the
// capacity that was in force when the last of their claims was made; that was after each had been asked for. It
// returns the most permits that were held at the same time, and by how long lost ones overlapped with
// those that were granted too early for them.
func Permits(grants []*Grant, resizes []Resize) (peak int, overlaps []int64, err error) {
	asked := map[int64]int64{} // by claim
	for _, g := range grants {
		if at, ok := asked[g.claim()]; !ok || g.Called < at {
			asked[g.claim()] = g.Called
		}
	}
	sorted := slices.SortedFunc(slices.Values(grants), func(a, b *Grant) int { return cmp.Compare(a.Got, b.Got) })
	var active []*Grant
	for _, g := range sorted {
		active = slices.DeleteFunc(active, func(a *Grant) bool { return a.End <= g.Got })
		active = append(active, g)
		total, reliable, last := 0, 0, int64(0)
		var lost *Grant // the one that was told first
		for _, a := range active {
			total += a.N
			last = max(last, asked[a.claim()])
			if a.certain() {
				reliable += a.N
			} else if lost == nil || a.End < lost.End {
				lost = a
			}
		}
		most := allowed(resizes, last, g.Got)
		if reliable > most {
			return peak, overlaps, fmt.Errorf("%d permits of %d held at once:\n%v", reliable, most, active)
		}
		peak = max(peak, reliable)
		if total > most {
			overlaps = append(overlaps, min(lost.End, g.End)-g.Got)
		}
	}
	return peak, overlaps, nil
}

// Tenure is for how long, at the most, a claim served one grant after the other.
func Tenure(grants []*Grant) (longest int64) {
	first := map[int64]int64{}
	for _, g := range grants {
		if at, ok := first[g.claim()]; !ok || g.Got < at {
			first[g.claim()] = g.Got
		}
	}
	for _, g := range grants {
		longest = max(longest, g.Got-first[g.claim()])
	}
	return longest
}

// Distinct checks that no token was handed out twice.
func Distinct(grants []*Grant) error {
	seen := make(map[int64]*Grant, len(grants))
	for _, g := range grants {
		if before := seen[g.Token]; before != nil {
			return fmt.Errorf("one token for two grants:\n%v\n%v", before, g)
		}
		seen[g.Token] = g
	}
	return nil
}
