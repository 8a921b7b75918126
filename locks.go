package pgbaton

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/registry"
)

// LockFilter selects from what [Client.Locks] returns. A field that is zero selects everything. What a selected waiter waits for is
// returned as well, whatever the filter says.
type LockFilter struct {
	Key    Key    // of the lock
	Kind   string // see [LockInfo]
	Name   string // of the lock, the leader or the semaphore
	Client string // its [Config.Name]

	// Database adds the sessions of the database that wait for rows, transactions or tables, and the sessions that they wait for, as the
	// kind "database".
	Database bool
}

// LockInfo is a holder or a waiter; see [Client.Locks].
type LockInfo struct {
	State string // "held" or "waiting"
	Kind  string // "lock"; "set", for one of several locks that are held or waited for as one; "once", for that of a run; "term"; "permit"; or "database", see [LockFilter]
	Name  string // of the lock, the leader or the semaphore; what waits in the database; "" if it is not known
	Key   Key    // of a lock or a term; by its number if the name is not known

	Shared  bool
	Permits int       // that are held or waited for
	Token   Token     // of what is held; 0 if it is not known
	Since   time.Time // by the database's clock, to about a second; zero if it is not known

	Client      string // its Config.Name; "" for another program
	Host        string // of the client; "" if it is not known
	Process     int    // the number of the client's process on its host; 0 if it is not known
	Application string // application_name of the session
	Session     int    // number of the server process that holds; 0 behind a pooler
	Holder      int64  // by which the schema knows whose it is; 0 for another program
	Unlisted    int    // how many more locks the client holds or waits for than it publishes by name

	Holds     []Key // what the goroutine holds that waits, as far as its context says so
	BlockedBy []int // indices of what this one waits for; of what is held, those of the waits that its goroutine is in
}

// Locks returns what is held and waited for in the database: the locks, terms and permits of all clients, with what is known of them, and the
// advisory locks of other programs, by their numbers. What the filter selects comes in no particular order; nil selects everything.
//
// Holders are those of the server's own list, so what was acquired a moment ago is there. What has lasted for two seconds has its name, its
// token and since when as well, published by its client. Of other services' locks the names are not shown, and of their permits nothing, unless to
// an operator; see docs/operations.md. In the portable schema there are no waiters.
//
// It takes one round trip, and is not for a hot path: reading the server's list of locks takes milliseconds where there are thousands. It needs
// a third connection, see [Config.MaxConns].
func (c *Client) Locks(ctx context.Context, filter *LockFilter) ([]LockInfo, error) {
	if err := c.sideSession(); err != nil {
		return nil, wrap(err, "list locks")
	}
	var f LockFilter
	if filter != nil {
		f = *filter
	}
	rows, err := registry.List(ctx, c.sidecar, f.Database)
	if err != nil {
		return nil, wrap(pgerr.Schema(translate(err)), "list locks")
	}
	all := make([]LockInfo, len(rows))
	blockers := make([][]int32, len(rows))
	for i, row := range rows {
		all[i], blockers[i] = infoOf(row), row.Blockers
	}
	link(all, blockers)
	return f.of(all), nil
}

// kindDatabase is that of what is no lock of the library's.
const kindDatabase = "database"

// infoOf is a row of the listing for users.
func infoOf(row registry.Row) LockInfo {
	l := LockInfo{
		State: row.State, Kind: row.Kind, Name: row.Name, Shared: row.Shared, Permits: row.Permits, Token: Token(row.Token),
		Since: row.Since, Client: row.Client, Host: row.Host, Process: row.Process, Application: row.Application, Session: row.Session,
		Holder: row.Holder, Unlisted: row.Unlisted,
	}
	for _, key := range row.Holds {
		l.Holds = append(l.Holds, keyOf(key, ""))
	}
	if row.Kind == string(registry.Permit) || row.Kind == kindDatabase {
		return l
	}
	if unquoted, err := strconv.Unquote(row.Name); err == nil && Name(row.Name).key != row.Key { // of a wait that is watched
		l.Name = unquoted
	}
	l.Key = keyOf(row.Key, l.Name)
	l.Name = l.Key.name
	if name, ok := strings.CutPrefix(l.Name, leaderPrefix); ok {
		l.Kind, l.Name = "term", name
	}
	return l
}

// keyOf is a key of the server's, with its name if that is its own.
func keyOf(key advisory.Key, name string) Key {
	switch {
	case name != "" && !key.Pair && Name(name).key == key:
		return Name(name)
	case key.Pair:
		return Pair(key.Halves())
	}
	return ID(key.ID)
}

// link finds out who waits for whom.
func link(all []LockInfo, blockers [][]int32) {
	held := map[any][]int{}       // by key, or by the name of the semaphore
	sessions := map[int32][]int{} // of the database's waits
	wanted := map[string][]int{}  // the waits of a client that hold something
	grips := map[int]map[advisory.Key]bool{}
	for i, l := range all {
		switch {
		case l.Kind == kindDatabase:
			sessions[int32(l.Session)] = append(sessions[int32(l.Session)], i) //nolint:gosec // a pid
		case l.State == "held":
			held[l.object()] = append(held[l.object()], i)
		case len(l.Holds) > 0:
			wanted[l.process()] = append(wanted[l.process()], i)
			grips[i] = map[advisory.Key]bool{}
			for _, key := range l.Holds {
				grips[i][key.key] = true
			}
		}
	}
	for i := range all {
		l := &all[i]
		switch {
		case l.Kind == kindDatabase:
			for _, pid := range blockers[i] {
				l.BlockedBy = append(l.BlockedBy, sessions[pid]...)
			}
		case l.State == "waiting":
			l.BlockedBy = slices.Clone(held[l.object()])
		default:
			for _, w := range wanted[l.process()] {
				if grips[w][l.Key.key] {
					l.BlockedBy = append(l.BlockedBy, w)
				}
			}
		}
	}
}

// object is what is held or waited for, to be compared.
func (l *LockInfo) object() any {
	if l.Kind == string(registry.Permit) {
		return l.Name
	}
	return l.Key.key
}

// process names the process of a client.
func (l *LockInfo) process() string { return fmt.Sprintf("%s %d %s", l.Host, l.Process, l.Client) }

// of selects, and adds what the selected wait for.
func (f *LockFilter) of(all []LockInfo) []LockInfo {
	take := make([]bool, len(all))
	var add func(i int)
	add = func(i int) {
		if take[i] {
			return
		}
		take[i] = true
		for _, j := range all[i].BlockedBy {
			add(j)
		}
	}
	for i := range all {
		if f.selects(&all[i]) {
			add(i)
		}
	}
	place := make([]int, len(all))
	var found []LockInfo
	for i, l := range all {
		if take[i] {
			place[i] = len(found)
			found = append(found, l)
		}
	}
	for i := range found {
		for j, other := range found[i].BlockedBy {
			found[i].BlockedBy[j] = place[other]
		}
	}
	return found
}

// selects reports whether the filter's fields fit.
func (f *LockFilter) selects(l *LockInfo) bool {
	return (f.Key == Key{} || f.Key.key == l.Key.key && l.Key.kind != keyInvalid) && (f.Kind == "" || f.Kind == l.Kind) &&
		(f.Name == "" || f.Name == l.Name) && (f.Client == "" || f.Client == l.Client)
}
