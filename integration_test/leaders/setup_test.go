package leaders

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// fleet is a set of processes that want to lead the same names.
type fleet struct {
	t     *testing.T
	dsn   string
	ttl   time.Duration
	lead  worker.Command
	alive []*worker.Process
	all   []*worker.Process
}

// newFleet starts processes that want to lead names; see [worker.Lead] for the command.
func newFleet(t *testing.T, dsn string, ttl time.Duration, size int, lead worker.Command) *fleet {
	t.Helper()
	lead.Do, lead.Client = worker.Lead, "c"
	f := &fleet{t: t, dsn: dsn, ttl: ttl, lead: lead}
	for range size {
		f.join()
	}
	return f
}

// join starts another process.
func (f *fleet) join() {
	f.t.Helper()
	p := worker.Start(f.t)
	p.Open("c", testkit.Named(f.t, f.dsn, fmt.Sprint("fleet-", len(f.all))), f.ttl)
	p.Do(f.lead)
	f.alive, f.all = append(f.alive, p), append(f.all, p)
}

// drop takes a process out of those that live.
func (f *fleet) drop(gone *worker.Process) {
	for i, p := range f.alive {
		if p == gone {
			f.alive = append(f.alive[:i:i], f.alive[i+1:]...)
			return
		}
	}
}

// reign is the newest term of a name.
type reign struct {
	*history.Grant

	process *worker.Process
}

// newest returns the newest term of a name that a process which lives has had, if there is one. One that was killed may
// have begun a term that nobody has seen.
func (f *fleet) newest(name string) (newest reign) {
	f.t.Helper()
	for _, p := range f.alive {
		grants, _ := p.History()
		for _, g := range grants {
			if g.Key == name && (newest.Grant == nil || g.Token > newest.Token) {
				newest = reign{g, p}
			}
		}
	}
	return newest
}

// after waits for a term of a name that is newer than a token.
func (f *fleet) after(name string, token int64) (next reign) {
	f.t.Helper()
	testkit.Eventually(f.t, "somebody leads "+name, func() bool {
		next = f.newest(name)
		return next.Grant != nil && next.Token > token
	})
	return next
}

// names are those of a fleet with Count.
func (f *fleet) names() (names []string) {
	for i := range f.lead.Count {
		names = append(names, fmt.Sprintf("%s/%d", f.lead.Key, i))
	}
	return names
}

// judge checks the terms of all processes: at most one leader at a time, and terms that rise. It returns for
// how long an old and a new leader overlapped after losses.
func (f *fleet) judge() []int64 {
	f.t.Helper()
	var all []*history.Grant
	for _, p := range f.all {
		grants, _ := p.History()
		all = append(all, grants...)
	}
	overlaps, err := history.Exclusion(all)
	require.NoError(f.t, err)
	require.NoError(f.t, history.Tokens(all))
	return overlaps
}
