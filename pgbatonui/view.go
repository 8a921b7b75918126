package pgbatonui

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton"
)

const (
	mostListed   = 300 // locks that are held, leaders, and holders of permits but for a few of each semaphore
	mostUnlisted = 20
)

// entry is a holder or a waiter as it is shown.
type entry struct {
	What, Who, Where string
	Note             string // what else is special
	Shared           bool
	Since            moment
	Token            string
	Free             string // by what it is freed; "" if it cannot be
}

// moment is a time as it is shown; the page makes an age of it.
type moment struct {
	time.Time
	today bool
}

func (m moment) ISO() string { return m.UTC().Format(time.RFC3339Nano) }

func (m moment) Text() string {
	if m.today {
		return m.UTC().Format("15:04:05")
	}
	return m.UTC().Format("2006-01-02 15:04")
}

// leader is a term, and how many stand by for the next.
type leader struct {
	entry
	Candidates int
}

// bar is a semaphore.
type bar struct {
	Name                     string
	Used, Capacity, Waiting  int
	Share                    string // of 100
	Full                     bool
	Holders                  []entry
	MoreHolders, HoldersHeld int
	of                       object
}

// window is a run, and when the next may be.
type window struct {
	Name, Err    string
	Began, Next  moment
	Length       string
	Running      bool
	Failed, Open bool // Open: the window has passed
}

// ending is a loss or a freeing.
type ending struct {
	At         moment
	What, Whom string
	How, Why   string
}

// view is a reading as it is shown.
type view struct {
	Error    string
	Database string
	AllowFree,
	Operator bool
	Missing map[string]string

	Numbers  numbers
	Charts   []shownChart
	Trees    []tree
	More     int
	Held     []entry
	MoreHeld int
	Leaders  []leader
	Bars     []bar
	Windows  []window
	Losses   []ending
	Freeings []ending
	Unlisted []string
	Findings []Finding
	Links    []fact

	Stale    bool // with Error: there was a reading before
	Portable bool // the schema, which has no waits, no requests to holders and no record of losses
	Leases   bool // of which only some are on record when they are lost

	MoreLeaders, MoreBars, MoreWindows, MoreUnlistedFrom int // than are shown
}

type numbers struct {
	Held, Waiting int
	Longest       moment // since when the one has waited who waits longest
}

type fact struct{ Name, Says string }

type shownChart struct {
	chart
	ID, Name, Now string
	Since         moment // an age is shown in place of Now
}

// viewer makes views; held collects what can be freed.
type viewer struct {
	*reading
	allow bool
	held  map[string]pgbaton.LockInfo
}

// moment is t as it is shown in this reading.
func (v *viewer) moment(t time.Time) moment {
	return moment{t, t.UTC().Format(time.DateOnly) == v.now.UTC().Format(time.DateOnly)}
}

// entry is l as it is shown.
func (v *viewer) entry(l pgbaton.LockInfo) entry {
	e := entry{What: what(l), Who: who(l), Where: where(l), Shared: l.Shared}
	switch {
	case l.Kind == kindSet:
		e.Note = "one of a set"
	case l.Kind == kindOnce:
		e.Note = "of a run"
	case l.Kind == kindPermit && l.Permits != 1:
		e.Note = strconv.Itoa(l.Permits) + " permits"
	}
	if !l.Since.IsZero() {
		e.Since = v.moment(l.Since)
	}
	if l.Token != 0 {
		e.Token = strconv.FormatInt(int64(l.Token), 10)
	}
	// A holder knows what is meant when it has published it, which gives it a token here.
	if v.allow && !v.diagnosis.Portable && l.State == stateHeld && l.Holder != 0 && l.Token != 0 {
		e.Free = reference(l)
		v.held[e.Free] = l
	}
	return e
}

// reference is by what a viewer names something that is held.
func reference(l pgbaton.LockInfo) string {
	_, id, pair := l.Key.Parts()
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %q %d %t %t %d", l.Holder, l.Kind, l.Name, id, pair, l.Shared, l.Token))
	const enough = 15
	return base64.RawURLEncoding.EncodeToString(sum[:enough])
}

// view is the reading as it is shown, but for the charts.
func (v *viewer) view() *view {
	shown := &view{
		AllowFree: v.allow, Database: plain(v.database), Operator: v.operator, Missing: v.missing, Findings: v.findings, Links: v.links(),
		Losses: v.lost(), Freeings: v.freed(), Windows: v.windows(), MoreWindows: v.moreRuns, MoreBars: v.moreSemaphores,
		Portable: v.diagnosis.Portable, Leases: v.diagnosis.Engine != "" && v.diagnosis.Engine != engineSession,
	}
	if v.err != nil {
		shown.Error = v.err.Error()
		return shown
	}
	forest := newForest(v.locks, v.entry)
	shown.Trees, shown.More = forest.trees()
	shown.Leaders, shown.MoreLeaders = v.leaders(forest)
	shown.Bars = v.bars(forest)
	shown.Unlisted, shown.MoreUnlistedFrom = v.unlisted()
	var held []pgbaton.LockInfo
	for _, l := range v.locks {
		if l.State == stateHeld {
			shown.Numbers.Held++
		} else if l.Kind != kindTerm {
			shown.Numbers.Waiting++
			if first := shown.Numbers.Longest; !l.Since.IsZero() && (first.IsZero() || l.Since.Before(first.Time)) {
				shown.Numbers.Longest = v.moment(l.Since)
			}
		}
		if l.State == stateHeld && l.Kind != kindTerm && l.Kind != kindPermit && len(forest.waiters[objectOf(l)]) == 0 {
			held = append(held, l)
		}
	}
	slices.SortStableFunc(held, func(a, b pgbaton.LockInfo) int { return cmp.Or(since(a, b), cmp.Compare(label(a), label(b))) })
	shown.MoreHeld = max(0, len(held)-mostListed)
	for _, l := range held[:len(held)-shown.MoreHeld] {
		shown.Held = append(shown.Held, v.entry(l))
	}
	return shown
}

// unlisted says which clients hold or wait for more than they publish, and from how many more that is so. Clients may have the same name.
func (v *viewer) unlisted() (says []string, more int) {
	type client struct {
		name, host string
		process    int
	}
	seen, sums := map[client]bool{}, map[string]int{}
	for _, l := range v.locks {
		if c := (client{who(l), l.Host, l.Process}); l.Unlisted > 0 && !seen[c] {
			seen[c] = true
			sums[c.name] += l.Unlisted
		}
	}
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if len(says) == mostUnlisted {
			return says, len(sums) - mostUnlisted
		}
		says = append(says, fmt.Sprintf("%s holds or waits for %d more than it publishes by name.", name, sums[name]))
	}
	return says, 0
}

// leaders are the terms, in the order of their names, and how many more there are.
func (v *viewer) leaders(f *forest) (all []leader, more int) {
	var terms []pgbaton.LockInfo
	for _, l := range v.locks {
		if l.Kind == kindTerm && l.State == stateHeld {
			terms = append(terms, l)
		}
	}
	slices.SortStableFunc(terms, func(a, b pgbaton.LockInfo) int {
		return cmp.Or(cmp.Compare(label(a), label(b)), cmp.Compare(a.Token, b.Token))
	})
	more = max(0, len(terms)-mostListed)
	for _, l := range terms[:len(terms)-more] {
		e := v.entry(l)
		e.What = label(l)
		all = append(all, leader{e, len(f.waiters[objectOf(l)])})
	}
	return all, more
}

// bars are the semaphores, the fullest first.
func (v *viewer) bars(f *forest) []bar {
	all := make([]bar, 0, len(v.semaphores))
	for _, m := range v.semaphores {
		o := object{name: m.name}
		b := bar{
			Name: plain(m.name), Used: m.capacity - m.available, Capacity: m.capacity, Waiting: len(f.waiters[o]), Full: m.available == 0,
			HoldersHeld: len(f.holders[o]), of: o,
		}
		const percent = 100
		b.Share = strconv.FormatFloat(percent*float64(b.Used)/float64(max(m.capacity, 1)), 'f', 1, 64)
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b bar) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Used*a.Capacity, a.Used*b.Capacity), cmp.Compare(a.Name, b.Name))
	})
	rows := quota{one: mostWaiters, all: mostListed}
	for i := range all {
		b := &all[i]
		shown := rows.take(b.HoldersHeld)
		b.MoreHolders = b.HoldersHeld - shown
		for _, j := range f.holders[b.of][:shown] {
			b.Holders = append(b.Holders, v.entry(f.locks[j]))
		}
	}
	return all
}

// windows are the runs, the newest first.
func (v *viewer) windows() []window {
	var all []window
	for _, r := range v.runs {
		w := window{
			Name: plain(r.name), Err: plain(r.err), Began: v.moment(r.began), Next: v.moment(r.began.Add(r.window)), Length: short(r.window),
			Running: r.ended.IsZero(), Failed: r.failed,
		}
		w.Open = !w.Next.After(v.now)
		all = append(all, w)
	}
	return all
}

func (v *viewer) lost() []ending {
	var all []ending
	for _, l := range v.losses {
		all = append(all, ending{At: v.moment(l.seen), What: l.what, Whom: l.whom, How: "its session has ended"})
	}
	return all
}

func (v *viewer) freed() []ending {
	var all []ending
	for _, f := range v.freeings {
		name := f.name
		if name == "" {
			name = f.key
		}
		l := termed(pgbaton.LockInfo{Kind: f.kind, Name: name, Permits: 1})
		all = append(all, ending{
			At: v.moment(f.at), What: what(l), Whom: plain(f.client), How: f.said, Why: byWhom(f),
		})
	}
	return all
}

func byWhom(f freeing) string {
	text := "by " + plain(f.by)
	if f.reason != "" {
		text += ": " + plain(f.reason)
	}
	return text
}

// links are the client's connections, and what they have found.
func (v *viewer) links() []fact {
	d := v.diagnosis
	if d.Server == "" {
		return nil
	}
	kept := strconv.Itoa(len(d.Protections) - len(d.Refused))
	return []fact{
		{"Server", "PostgreSQL " + d.Server},
		{"Schema", "version " + strconv.Itoa(d.Schema)},
		{"Engine", d.Engine},
		{"Pooler", d.Pooler},
		{"Connections", fmt.Sprintf("%d of %d", d.Conns, d.MaxConns)},
		{"TTL", short(d.TTL)},
		{"Protections", fmt.Sprintf("%s of %d", kept, len(d.Protections))},
	}
}

// short is a duration without the zeros at its end.
func short(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
