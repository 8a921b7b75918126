package command

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pgbaton/pgbaton"
)

// The words of [pgbaton.LockInfo].
const (
	stateHeld    = "held"
	kindLock     = "lock"
	kindTerm     = "term"
	kindPermit   = "permit"
	kindDatabase = "database"
)

// termKey is what the name of a leader's lock begins with, as docs/operations.md says.
const termKey = "pgbaton/leader/"

// lockView is a holder or a waiter as JSON.
type lockView struct {
	State       string     `json:"state"`
	Kind        string     `json:"kind"`
	Key         string     `json:"key,omitempty"` // as an argument of this command
	Name        string     `json:"name,omitempty"`
	Shared      bool       `json:"shared,omitempty"`
	Permits     int        `json:"permits,omitempty"`
	Token       int64      `json:"token,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Client      string     `json:"client,omitempty"`
	Host        string     `json:"host,omitempty"`
	Process     int        `json:"process,omitempty"`
	Application string     `json:"application,omitempty"`
	Session     int        `json:"session,omitempty"`
	Unlisted    int        `json:"unlisted,omitempty"`
	Holds       []string   `json:"holds,omitempty"`
	BlockedBy   []int      `json:"blocked_by,omitempty"` // indices in the same listing
}

func viewOf(l pgbaton.LockInfo) lockView {
	v := lockView{
		State: l.State, Kind: l.Kind, Key: argument(l), Name: l.Name, Shared: l.Shared, Token: int64(l.Token), Client: l.Client, Host: l.Host,
		Process: l.Process, Application: l.Application, Session: l.Session, Unlisted: l.Unlisted, BlockedBy: l.BlockedBy,
	}
	if l.Kind == kindPermit {
		v.Permits = l.Permits
	}
	if !l.Since.IsZero() {
		since := l.Since.UTC()
		v.Since = &since
	}
	for _, key := range l.Holds {
		v.Holds = append(v.Holds, keyArgument(key))
	}
	return v
}

func viewsOf(locks []pgbaton.LockInfo) []lockView {
	views := make([]lockView, len(locks))
	for i, l := range locks {
		views[i] = viewOf(l)
	}
	return views
}

// keyArgument is a key as people write it; see parseKey.
func keyArgument(key pgbaton.Key) string {
	name, id, pair := key.Parts()
	switch {
	case name != "" && hasPrefix(name, prefixName, prefixID, prefixPair):
		return prefixName + name
	case name != "":
		return name
	case pair:
		return prefixPair + fmt.Sprintf("%d,%d", int32(id>>32), int32(id)) //nolint:gosec,mnd // the halves
	}
	return prefixID + strconv.FormatInt(id, 10)
}

func hasPrefix(text string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(text, prefix) })
}

// argument is by what this command calls something; "" for the database's own.
func argument(l pgbaton.LockInfo) string {
	switch l.Kind {
	case kindDatabase:
		return ""
	case kindLock:
		return keyArgument(l.Key)
	}
	return l.Name
}

// concerns reports whether something is what a key or a name is meant to be: the lock, the leader's term, or permits.
func concerns(l pgbaton.LockInfo, key pgbaton.Key) bool {
	name, id, pair := key.Parts()
	switch l.Kind {
	case kindLock:
		_, lockID, lockPair := l.Key.Parts()
		if name != "" { // a term that has no name yet
			_, term, _ := pgbaton.Name(termKey + name).Parts()
			if !lockPair && lockID == term {
				return true
			}
		}
		return lockID == id && lockPair == pair
	case kindTerm, kindPermit:
		return name != "" && l.Name == name
	}
	return false
}

// about selects what concerns a key, what waits for it, and what it waits for.
func about(locks []pgbaton.LockInfo, key pgbaton.Key) []pgbaton.LockInfo {
	take := make([]bool, len(locks))
	var add func(i int)
	add = func(i int) {
		if !take[i] {
			take[i] = true
			for _, j := range locks[i].BlockedBy {
				add(j)
			}
		}
	}
	for i, l := range locks {
		if concerns(l, key) {
			add(i)
		}
	}
	order := make([]int, 0, len(locks))
	for i := range locks {
		if take[i] {
			order = append(order, i)
		}
	}
	return arrange(locks, order)
}

// inOrder sorts for people: by what it is, holders before waiters, the longest first. Names are before numbers, and the database's own last.
func inOrder(locks []pgbaton.LockInfo) []pgbaton.LockInfo {
	type place struct {
		group    int
		argument string
	}
	places := make([]place, len(locks))
	order := make([]int, len(locks))
	for i, l := range locks {
		order[i], places[i] = i, place{argument: argument(l)}
		if l.Name == "" {
			places[i].group = 1
		}
		if l.Kind == kindDatabase {
			places[i].group += 2
		}
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := &locks[i], &locks[j]
		return cmp.Or(
			cmp.Compare(places[i].group, places[j].group), strings.Compare(places[i].argument, places[j].argument),
			strings.Compare(a.Kind, b.Kind), strings.Compare(a.State, b.State), a.Since.Compare(b.Since), a.Session-b.Session,
		)
	})
	return arrange(locks, order)
}

// arrange returns some of the locks in an order. All that one of them waits for has to be among them.
func arrange(locks []pgbaton.LockInfo, order []int) []pgbaton.LockInfo {
	place := make([]int, len(locks))
	for to, from := range order {
		place[from] = to
	}
	arranged := make([]pgbaton.LockInfo, len(order))
	for to, from := range order {
		l := locks[from]
		behind := make([]int, len(l.BlockedBy))
		for i, other := range l.BlockedBy {
			behind[i] = place[other]
		}
		slices.Sort(behind)
		l.BlockedBy = behind
		arranged[to] = l
	}
	return arranged
}

// what names something for people.
func what(l pgbaton.LockInfo) string {
	name := printable(argument(l))
	switch {
	case l.Kind == kindPermit && l.Permits != 1:
		return fmt.Sprintf("%d permits of %s", l.Permits, name)
	case l.Kind == kindPermit:
		return "permit of " + name
	case l.Kind == kindTerm:
		return "term of " + name
	case l.Kind == kindDatabase:
		return printable(l.Name)
	case l.Shared:
		return "shared lock " + name
	}
	return "lock " + name
}

// who names a client, or another program, for people.
func who(l pgbaton.LockInfo) string {
	switch {
	case l.Client != "" && l.Process != 0 && l.Client != fmt.Sprintf("%s:%d", l.Host, l.Process):
		return fmt.Sprintf("%s (%s, process %d)", printable(l.Client), printable(l.Host), l.Process)
	case l.Client != "":
		return printable(l.Client)
	case l.Application != "" && l.Session != 0:
		return fmt.Sprintf("%s (session %d)", printable(l.Application), l.Session)
	case l.Session != 0:
		return fmt.Sprintf("session %d", l.Session)
	}
	return "?"
}

// age is for how long it has been so, by the database's clock; "" if that is not known.
func age(l pgbaton.LockInfo, now time.Time) string {
	if l.Since.IsZero() {
		return ""
	}
	return max(now.Sub(l.Since), 0).Round(time.Second).String()
}

// printable is a text that others have chosen, without what would move a terminal's cursor.
func printable(text string) string {
	if text == "" || !isPlain(text) {
		return strconv.Quote(text)
	}
	return text
}

// isPlain reports whether a text can be printed as it is.
func isPlain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) })
}
