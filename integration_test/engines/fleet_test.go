package engines

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

const (
	processes  = 8
	permits    = 3
	serviceKey = "service"
)

// load is what each process does: a candidate to lead, a cron, permits, and locks of few keys in all ways.
var load = worker.Command{
	Do: worker.Serve, Key: serviceKey, Keys: 2, Count: 2, Hold: 2 * time.Millisecond, Pause: 60 * time.Millisecond,
}

// fleet is the processes of a service, and the operator.
type fleet struct {
	t      *testing.T
	began  time.Time
	dsn    string
	admin  *pgx.Conn
	ttl    time.Duration
	rounds int // how often each process is granted something of each kind before the fleet goes on

	alive []*member
	all   []*member
}

// member is a process, with what it has written down so far.
type member struct {
	*worker.Process

	name    string
	client  string // the one in use
	opened  int    // clients
	serving *worker.Call
	log     *history.Follower
	events  []history.Event
	calls   map[int64]history.Event // of what it asked for, by operation
	counts  progress                // by these events
	killed  int64                   // when, 0 if it was not
	number  int
}

// progress is what a process was granted of that for which it waits, and whether it leads.
type progress struct {
	permits, shared, exclusive int
	leads                      int64 // the operation, 0 if it does not
}

func (p progress) least() int { return min(p.permits, p.shared, p.exclusive) }

func (p progress) since(before progress) progress {
	return progress{permits: p.permits - before.permits, shared: p.shared - before.shared, exclusive: p.exclusive - before.exclusive}
}

// newFleet starts the processes of a service under load. The first client records the engine.
func newFleet(t *testing.T, ttl time.Duration) *fleet {
	t.Helper()
	dsn := lab.Database(t)
	f := &fleet{t: t, began: time.Now(), dsn: dsn, admin: testkit.Connect(t, dsn), ttl: ttl, rounds: testkit.Brief(4, 1)}
	_, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), serviceKey+worker.PermitRole, permits)
	require.NoError(t, err)
	for range processes {
		f.join(dsn)
	}
	f.requireProgress("the start")
	return f
}

// join starts another process.
func (f *fleet) join(dsn string) {
	f.t.Helper()
	m := &member{Process: worker.Start(f.t), number: len(f.all), name: fmt.Sprintf("<process %d>", len(f.all)), calls: map[int64]history.Event{}}
	m.log = m.Follow()
	f.open(m, dsn)
	f.alive, f.all = append(f.alive, m), append(f.all, m)
}

// open opens another client in a process, with the engine that is recorded, and has it serve.
func (f *fleet) open(m *member, dsn string) {
	f.t.Helper()
	m.opened++
	m.client = fmt.Sprint("client ", m.opened)
	m.Do(worker.Command{Do: worker.Open, Client: m.client, DSN: dsn, TTL: f.ttl, Name: m.name})
	serve := load
	serve.Client = m.client
	m.serving = m.Begin(serve)
}

// restart does what a rolling deploy does with a process: it ends its work and closes its client, and begins again.
func (f *fleet) restart(m *member, dsn string) {
	f.t.Helper()
	f.retire(m)
	f.open(m, dsn)
}

// retire ends the work of a process and closes its client.
func (f *fleet) retire(m *member) {
	f.t.Helper()
	m.Do(worker.Command{Do: worker.Stop, Client: m.client})
	m.serving.Wait()
	m.Do(worker.Command{Do: worker.Close, Client: m.client})
}

// kill kills a process.
func (f *fleet) kill(m *member) {
	f.t.Helper()
	m.killed = m.Kill()
	f.alive = slices.DeleteFunc(f.alive, func(other *member) bool { return other == m })
}

// read brings up to date what a process has written down.
func (f *fleet) read(m *member) progress {
	f.t.Helper()
	more, err := m.log.More()
	require.NoError(f.t, err)
	m.events = append(m.events, more...)
	for _, e := range more {
		m.note(e)
	}
	return m.counts
}

func (m *member) note(e history.Event) {
	switch e.Kind {
	case history.Call:
		m.calls[e.Op] = e
	case history.Granted:
		switch call := m.calls[e.Op]; {
		case call.N > 0:
			m.counts.permits++
		case call.Mode == history.Shared:
			m.counts.shared++
		case strings.HasPrefix(call.Key, serviceKey+worker.LockRole):
			m.counts.exclusive++
		case call.Key == serviceKey+worker.LeaderRole:
			m.counts.leads = e.Op
		}
	case history.Release, history.Lost:
		if e.Op == m.counts.leads {
			m.counts.leads = 0
		}
	}
}

// requireProgress waits until each of some processes, all that live if none is named, has been granted permits, shared and exclusive
// locks since now, and somebody leads. A process that is granted nothing at all hangs.
func (f *fleet) requireProgress(since string, some ...*member) {
	f.t.Helper()
	if len(some) == 0 {
		some = f.alive
	}
	before := map[*member]progress{}
	for _, m := range some {
		before[m] = f.read(m)
	}
	for _, m := range some {
		last, end := before[m], time.Now().Add(lab.Hang)
		for ; f.read(m).since(before[m]).least() < f.rounds; time.Sleep(5 * time.Millisecond) {
			if m.counts != last { // it is granted something: slow it may be
				last, end = m.counts, time.Now().Add(lab.Hang)
			}
			require.True(f.t, time.Now().Before(end), "%s since %s: %+v", m.name, since, m.counts.since(before[m]))
			select {
			case <-m.serving.Settled():
				m.serving.Wait() // says why
				require.Fail(f.t, "a service has ended", "%s since %s", m.name, since)
			default:
			}
		}
	}
	testkit.Eventually(f.t, "somebody leads since "+since, func() bool {
		return slices.ContainsFunc(f.alive, func(m *member) bool { return f.read(m).leads != 0 })
	})
}

// end ends the service.
func (f *fleet) end() {
	f.t.Helper()
	for _, m := range f.alive {
		m.Do(worker.Command{Do: worker.Stop})
	}
	for _, m := range f.alive {
		m.serving.Wait()
		m.Do(worker.Command{Do: worker.Close, Client: m.client})
	}
	for _, m := range f.all {
		f.read(m)
	}
}

// judged is what the histories of the whole fleet show.
type judged struct {
	tried, granted int
	overlaps       []history.Overlap // of certain intervals
}

// judge checks the whole run: exclusion, which it leaves to the caller, tokens, the model, permits and windows.
func (f *fleet) judge() (all judged) {
	f.t.Helper()
	var locks, slots []*history.Grant
	var runs []history.Event
	for _, m := range f.all {
		for _, e := range m.events {
			switch e.Kind {
			case history.Call:
				all.tried++
			case history.Ran:
				runs = append(runs, e)
			}
		}
		granted, _ := history.Grants(m.number, m.events, m.killed)
		all.granted += len(granted)
		for _, g := range granted {
			if g.N > 0 {
				slots = append(slots, g)
			} else {
				locks = append(locks, g)
			}
		}
	}
	all.overlaps = history.Overlaps(locks)
	for _, o := range all.overlaps {
		f.t.Logf("lost %v: %v", o.Lost(), o)
	}
	testkit.Figure(f.t, "%d operations, %d grants, %d overlaps", all.tried, all.granted, len(all.overlaps))
	_, err := history.Exclusion(locks)
	require.NoError(f.t, err)
	require.NoError(f.t, history.Tokens(locks))
	_, err = history.Check(locks, f.t.TempDir())
	require.NoError(f.t, err)
	_, _, err = history.Permits(slots, []history.Resize{{Capacity: permits}})
	require.NoError(f.t, err)
	require.NotEmpty(f.t, runs)
	require.NoError(f.t, history.Windows(runs, locks, worker.ServiceWindow))
	return all
}

// requireNothingLeft waits until the database has nothing that a client held or was.
func (f *fleet) requireNothingLeft() {
	f.t.Helper()
	for what, sql := range map[string]string{
		"advisory locks": "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))",
		"leases":         "SELECT NOT EXISTS (SELECT FROM pgbaton.lease WHERE holder IS NOT NULL OR next IS NOT NULL)",
		"shares":         "SELECT NOT EXISTS (SELECT FROM pgbaton.lease_share)",
		"waits":          "SELECT NOT EXISTS (SELECT FROM pgbaton.waits())",
	} {
		f.t.Log("nothing is left:", what)
		testkit.WaitFor(f.t, f.admin, sql)
	}
	semaphore, err := testclient.New(f.t, f.dsn, nil).Semaphore(f.t.Context(), serviceKey+worker.PermitRole, 0)
	require.NoError(f.t, err)
	testkit.Eventually(f.t, "all permits are there", func() bool {
		free, err := testclient.Available(f.t.Context(), semaphore)
		require.NoError(f.t, err)
		return free == permits
	})
}

// span is a part of the run.
type span struct{ from, to int64 }

// count counts what was tried and granted in a part of the run.
func (f *fleet) count(s span) (tried, granted int) {
	for _, m := range f.all {
		for _, e := range m.events {
			if e.At >= s.from && e.At < s.to {
				switch e.Kind {
				case history.Call:
					tried++
				case history.Granted:
					granted++
				}
			}
		}
	}
	return tried, granted
}

// names are those of processes, ordered.
func names(members []*member) (list []string) {
	for _, m := range members {
		list = append(list, m.name)
	}
	slices.SortFunc(list, cmp.Compare)
	return list
}
