package pgbatonui

import (
	"cmp"
	"slices"

	"github.com/pgbaton/pgbaton"
)

const (
	mostTrees   = 100 // those below others as well
	mostDepth   = 8   // of trees below one another
	mostWaiters = 50  // of one object
	mostWaiting = 500 // in all trees, but for a few of each
	mostHolders = 8   // of one object in a tree
	mostHolding = 300 // in all trees, but for a few of each
	few         = 2
)

// quota bounds rows: so many of one thing, and of all things, but for a few of each.
type quota struct{ one, all, used int }

// take returns how many of n rows there may be.
func (q *quota) take(n int) int {
	n = min(n, q.one, max(q.all-q.used, few))
	q.used += n
	return n
}

// object is what is held or waited for, to be compared.
type object struct {
	name string // of a semaphore
	key  int64
	pair bool
}

func objectOf(l pgbaton.LockInfo) object {
	if l.Kind == kindPermit {
		return object{name: l.Name}
	}
	_, id, pair := l.Key.Parts()
	return object{key: id, pair: pair}
}

// tree is something that is waited for: its holders, and its waiters, with what is waited for that they hold.
type tree struct {
	What        string
	Holders     []entry
	MoreHolders int
	Waiters     []waiter
	MoreWaiters int
	Again       bool // drawn elsewhere on the page
	Circle      bool // it is above itself: a deadlock
	Deep        bool // too deep to be drawn here: it is a tree of its own, if there is room
}

type waiter struct {
	entry
	Below     []tree
	MoreBelow int
}

// forest makes trees of a listing.
type forest struct {
	locks   []pgbaton.LockInfo
	entry   func(pgbaton.LockInfo) entry
	holders map[object][]int
	waiters map[object][]int
	hold    map[int][]object // by waiter: what its goroutine holds
	drawn   map[object]bool
	count   int // of trees

	waiting, holding quota
}

func newForest(locks []pgbaton.LockInfo, entry func(pgbaton.LockInfo) entry) *forest {
	f := &forest{
		locks: locks, entry: entry, holders: map[object][]int{}, waiters: map[object][]int{}, hold: map[int][]object{}, drawn: map[object]bool{},
		waiting: quota{one: mostWaiters, all: mostWaiting}, holding: quota{one: mostHolders, all: mostHolding},
	}
	for i, l := range locks {
		o := objectOf(l)
		if l.State != stateHeld {
			f.waiters[o] = append(f.waiters[o], i)
			continue
		}
		f.holders[o] = append(f.holders[o], i)
		for _, w := range l.BlockedBy {
			f.hold[w] = append(f.hold[w], o)
		}
	}
	longest := func(i, j int) int { return since(locks[i], locks[j]) }
	for o := range f.holders {
		slices.SortStableFunc(f.holders[o], longest)
	}
	for o := range f.waiters {
		slices.SortStableFunc(f.waiters[o], longest)
	}
	return f
}

// since orders by age, the oldest first; what is too young to have one is last.
func since(a, b pgbaton.LockInfo) int {
	if a.Since.IsZero() != b.Since.IsZero() {
		if a.Since.IsZero() {
			return 1
		}
		return -1
	}
	return a.Since.Compare(b.Since)
}

// trees returns what is waited for, the longest wait first, and how many more there are. Those that wait to lead are left out: they are meant to.
func (f *forest) trees() (all []tree, more int) {
	var objects []object
	for o, waiters := range f.waiters {
		if f.locks[waiters[0]].Kind != kindTerm {
			objects = append(objects, o)
		}
	}
	slices.SortFunc(objects, func(a, b object) int {
		first, second := f.locks[f.waiters[a][0]], f.locks[f.waiters[b][0]]
		return cmp.Or(since(first, second), cmp.Compare(a.name, b.name), cmp.Compare(a.key, b.key))
	})
	for _, circles := range []bool{false, true} { // what nobody above it waits for, then what is in circles
		for _, o := range objects {
			if f.drawn[o] || !circles && f.below(o) {
				continue
			}
			if f.count == mostTrees {
				more++
				f.drawn[o] = true
				continue
			}
			all = append(all, f.tree(o, nil))
		}
	}
	return all, more
}

// below reports whether a holder of an object waits itself.
func (f *forest) below(o object) bool {
	return slices.ContainsFunc(f.holders[o], func(i int) bool { return len(f.locks[i].BlockedBy) > 0 })
}

// tree is an object with what is below it.
func (f *forest) tree(o object, above []object) tree {
	f.count++
	t := tree{What: f.title(o), Circle: slices.Contains(above, o)}
	switch {
	case t.Circle:
		return t
	case f.drawn[o]:
		t.Again = true
		return t
	case len(above) == mostDepth:
		t.Deep, t.MoreWaiters = true, len(f.waiters[o])
		return t
	}
	f.drawn[o] = true
	holders := f.holders[o][:f.holding.take(len(f.holders[o]))]
	t.MoreHolders = len(f.holders[o]) - len(holders)
	for _, i := range holders {
		t.Holders = append(t.Holders, f.entry(f.locks[i]))
	}
	above = append(above, o)
	waiters := f.waiters[o][:f.waiting.take(len(f.waiters[o]))]
	t.MoreWaiters = len(f.waiters[o]) - len(waiters)
	for _, i := range waiters {
		w := waiter{entry: f.entry(f.locks[i])}
		for _, held := range f.hold[i] {
			switch {
			case len(f.waiters[held]) == 0:
			case f.count == mostTrees:
				w.MoreBelow++
			default:
				w.Below = append(w.Below, f.tree(held, above))
			}
		}
		t.Waiters = append(t.Waiters, w)
	}
	return t
}

// title names an object, without a mode or a number of permits, which are the holders'.
func (f *forest) title(o object) string {
	l := f.locks[f.waiters[o][0]]
	if l.Kind == kindPermit {
		return "semaphore " + plain(o.name)
	}
	for _, i := range f.holders[o] {
		l.Name = cmp.Or(l.Name, f.locks[i].Name)
	}
	l.Shared = false
	return what(l)
}
