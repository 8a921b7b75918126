package pgbatonui

import (
	"cmp"
	"slices"

	"github.com/pgbaton/pgbaton"
)

const (
	mostTrees   = 100
	mostWaiters = 50
	mostHolders = 8 // of one object in a tree
)

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
}

type waiter struct {
	entry
	Below []tree
}

// forest makes trees of a listing.
type forest struct {
	locks   []pgbaton.LockInfo
	entry   func(pgbaton.LockInfo) entry
	holders map[object][]int
	waiters map[object][]int
	hold    map[int][]object // by waiter: what its goroutine holds
	drawn   map[object]bool
}

func newForest(locks []pgbaton.LockInfo, entry func(pgbaton.LockInfo) entry) *forest {
	f := &forest{
		locks: locks, entry: entry, holders: map[object][]int{}, waiters: map[object][]int{}, hold: map[int][]object{}, drawn: map[object]bool{},
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
			if len(all) == mostTrees {
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
	t := tree{What: f.title(o), Circle: slices.Contains(above, o)}
	if t.Circle || f.drawn[o] {
		t.Again = !t.Circle
		return t
	}
	f.drawn[o] = true
	for _, i := range f.holders[o] {
		if len(t.Holders) == mostHolders {
			t.MoreHolders = len(f.holders[o]) - mostHolders
			break
		}
		t.Holders = append(t.Holders, f.entry(f.locks[i]))
	}
	above = append(above, o)
	for _, i := range f.waiters[o] {
		if len(t.Waiters) == mostWaiters {
			t.MoreWaiters = len(f.waiters[o]) - mostWaiters
			break
		}
		w := waiter{entry: f.entry(f.locks[i])}
		for _, held := range f.hold[i] {
			if len(f.waiters[held]) > 0 {
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
