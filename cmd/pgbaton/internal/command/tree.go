package command

import (
	"fmt"
	"strings"

	"github.com/pgbaton/pgbaton"
)

// forest draws a listing: what nobody keeps waiting is at the left, and what waits for something is below it. A waiter that holds something
// has that below it, with those that wait for it. What waits in a circle is drawn from one of its members on.
type forest struct {
	shown

	below [][]int // indices of what waits for each
	drawn []bool
	text  strings.Builder
}

// tree is a listing as a tree.
func tree(s shown) string {
	f := &forest{shown: s, below: make([][]int, len(s.locks)), drawn: make([]bool, len(s.locks))}
	for i, l := range s.locks {
		for _, j := range l.BlockedBy {
			f.below[j] = append(f.below[j], i)
		}
	}
	for i, l := range s.locks {
		if len(l.BlockedBy) == 0 {
			f.draw(i, "", "", nil)
		}
	}
	for i := range s.locks {
		if !f.drawn[i] {
			f.draw(i, "", "", nil)
		}
	}
	return f.text.String()
}

// draw draws one and what is below it. Path is what is above it.
func (f *forest) draw(i int, lead, indent string, path []int) {
	l := f.locks[i]
	f.text.WriteString(lead + f.line(l))
	for _, above := range path {
		if above == i {
			f.text.WriteString("  <- a circle: a deadlock, unless one of them stops waiting\n")
			return
		}
	}
	if f.drawn[i] && len(f.below[i]) > 0 {
		f.text.WriteString("  (its waiters are above)\n")
		return
	}
	f.drawn[i] = true
	f.text.WriteString("\n")
	path = append(path, i)
	for n, j := range f.below[i] {
		branch, stem := "├─ ", "│  "
		if n == len(f.below[i])-1 {
			branch, stem = "└─ ", "   "
		}
		f.draw(j, indent+branch, indent+stem, path)
	}
}

// line says what one is.
func (f *forest) line(l pgbaton.LockInfo) string {
	verb := "waits for"
	if l.State == stateHeld {
		verb = "holds"
	}
	text := fmt.Sprintf("%s %s %s", who(l), verb, what(l))
	if l.Kind == kindDatabase && l.State == stateHeld {
		text = who(l) + " has a transaction open"
	}
	if since := age(l, f.now); since != "" {
		text += ", for " + since
	}
	if l.Token != 0 {
		text += fmt.Sprintf(", token %d", l.Token)
	}
	return text
}
