package poolers

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// fleet is the processes of a service.
type fleet struct {
	t     *testing.T
	open  worker.Command
	serve worker.Command

	alive []*member
	all   []*member
	runs  []history.Event // after end
}

// member is a process, with what it has written down so far.
type member struct {
	*worker.Process

	serving *worker.Call
	log     *history.Follower
	events  []history.Event
	granted []*history.Grant // by these events
	killed  int64            // when, 0 if it was not
	number  int
}

// newFleet starts a service. The commands are those with which each process opens its client and serves.
func newFleet(t *testing.T, size int, open, serve worker.Command) *fleet {
	t.Helper()
	open.Do, serve.Do, open.Client, serve.Client = worker.Open, worker.Serve, "c", "c"
	f := &fleet{t: t, open: open, serve: serve}
	for range size {
		f.join()
	}
	return f
}

// join starts another process.
func (f *fleet) join() {
	f.t.Helper()
	p := worker.Start(f.t)
	p.Do(f.open)
	m := &member{Process: p, log: p.Follow(), number: len(f.all)}
	m.serving = p.Begin(f.serve)
	f.alive, f.all = append(f.alive, m), append(f.all, m)
}

// kill kills a process and starts another in its place.
func (f *fleet) kill(m *member) (at int64) {
	f.t.Helper()
	m.killed = m.Kill()
	f.alive = slices.DeleteFunc(f.alive, func(other *member) bool { return other == m })
	return m.killed
}

// read brings up to date what a process has written down.
func (f *fleet) read(m *member) {
	f.t.Helper()
	more, err := m.log.More()
	require.NoError(f.t, err)
	m.events = append(m.events, more...)
	if len(more) > 0 || m.killed != 0 {
		m.granted, _ = history.Grants(m.number, m.events, m.killed)
	}
}

// grants returns what a process was granted of a key so far.
func (f *fleet) grants(m *member, key string) (grants []*history.Grant) {
	f.t.Helper()
	f.read(m)
	for _, g := range m.granted {
		if g.Key == key {
			grants = append(grants, g)
		}
	}
	return grants
}

// held reports whether a grant had not ended at a time. A process that has written down the end of a grant has given it up.
func held(g *history.Grant, at int64) bool { return g.Got < at && g.End >= at }

// look is how often the logs are read: what is measured are the stamps in them.
const look = 10 * time.Millisecond

// holder waits for a process that holds a key, and returns it with its grant.
func (f *fleet) holder(key string) (m *member, g *history.Grant) {
	f.t.Helper()
	testkit.Eventually(f.t, "somebody has "+key, func() bool {
		time.Sleep(look)
		for _, m = range f.alive {
			for _, g = range f.grants(m, key) {
				if held(g, history.Now()) {
					return true
				}
			}
		}
		return false
	})
	return m, g
}

// strike sends a signal to a process that holds a key, and returns the process, the grant and when it was struck. It strikes again if
// the grant ended in the meantime.
func (f *fleet) strike(key string, sig syscall.Signal) (*member, *history.Grant, int64) {
	f.t.Helper()
	for {
		m, g := f.holder(key)
		var at int64
		if sig == syscall.SIGKILL {
			at = f.kill(m)
			f.join()
		} else {
			m.Signal(sig)
			at = history.Now()
		}
		for _, now := range f.grants(m, key) {
			if now.Op == g.Op && held(now, at) {
				return m, now, at
			}
		}
		if sig == syscall.SIGSTOP {
			m.Signal(syscall.SIGCONT)
		}
	}
}

// taken waits until other processes have all of a key that there is for so many, since one of its holders was struck, and returns
// when they had.
func (f *fleet) taken(key string, struck *member, at int64, capacity int) (when int64) {
	f.t.Helper()
	testkit.Eventually(f.t, "others have "+key, func() bool {
		time.Sleep(look)
		var others []*history.Grant
		for _, m := range f.alive {
			if m != struck {
				others = append(others, f.grants(m, key)...)
			}
		}
		when = full(others, at, capacity)
		return when != 0
	})
	return when
}

// full returns when, from a time on, so many of some grants were held at once; 0 if they were not.
func full(grants []*history.Grant, from int64, capacity int) int64 {
	slices.SortFunc(grants, func(a, b *history.Grant) int { return int(a.Got - b.Got) })
	for _, g := range grants {
		at := max(g.Got, from)
		n := 0
		for _, other := range grants {
			if other.Got <= at && other.End > at {
				n++
			}
		}
		if n >= capacity {
			return at
		}
	}
	return 0
}

// end ends the service and returns all that was granted.
func (f *fleet) end() (all []*history.Grant) {
	f.t.Helper()
	for _, m := range f.alive {
		m.Do(worker.Command{Do: worker.Stop})
	}
	for _, m := range f.alive {
		m.serving.Wait()
	}
	var total history.Counts
	for _, m := range f.all {
		f.read(m)
		for _, e := range m.events {
			if e.Kind == history.Ran {
				f.runs = append(f.runs, e)
			}
		}
		grants, counts := history.Grants(m.number, m.events, m.killed)
		all = append(all, grants...)
		total.Add(counts)
	}
	testkit.Figure(f.t, "%d processes, at the end: %+v", len(f.all), total)
	return all
}
