package storm

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

// Line is something for which processes wait in a line whose first ones are frozen.
type Line struct {
	Name   string
	Frozen int // how many are paused before the one that is measured
	what   worker.Command
	leader bool
}

// Lines are all lines.
var Lines = []Line{
	{Name: "lock", Frozen: 1},
	{Name: "shared lock", Frozen: 1, what: worker.Command{Shared: true}},
	{Name: "set", Frozen: 1, what: worker.Command{Count: 3}},
	{Name: "semaphore", Frozen: 1, what: worker.Command{N: 1}},
	{Name: "leader", Frozen: 1, leader: true},
	{Name: "lock, three frozen", Frozen: 3},
}

// FrozenBound is what one frozen waiter may cost those behind it.
const FrozenBound = 1500 * time.Millisecond

// askedAgain is about how long a waiter needs to ask for a lease again.
const askedAgain = 150 * time.Millisecond

// Thawed is what the rounds of a line showed.
type Thawed struct {
	Line       string        `json:"line"`
	Major      int           `json:"major"`
	Rounds     int           `json:"rounds"`
	Frozen     int           `json:"frozen"`
	P50        time.Duration `json:"p50_ns"`
	Max        time.Duration `json:"max_ns"`
	Violations []string      `json:"violations"`
}

// Freeze measures, for each line at the same time, how long the first waiter that runs waits for a grant after the release,
// when those before it are frozen. TTL is the clients'.
func Freeze(ctx context.Context, tb worker.TB, server *pgserver.Server, lines []Line, rounds int, ttl time.Duration) []*Thawed {
	tb.Helper()
	home := prepare(tb, server)
	results := make([]*Thawed, len(lines))
	var all sync.WaitGroup
	for i, l := range lines {
		results[i] = &Thawed{Line: l.Name, Major: server.Major(), Frozen: l.Frozen}
		all.Go(func() { newQueue(tb, home, l, ttl, i).measure(ctx, rounds, results[i]) })
	}
	all.Wait()
	return results
}

// queue is a line with its processes: the holder, those that are frozen, and the one that is measured.
type queue struct {
	Line

	tb      worker.TB
	home    *field
	ttl     time.Duration
	number  int
	workers []*worker.Process
	control *control
}

func newQueue(tb worker.TB, home *field, l Line, ttl time.Duration, number int) *queue {
	q := &queue{Line: l, tb: tb, home: home, ttl: ttl, number: number, control: &control{field: home}}
	for range l.Frozen + 2 {
		q.workers = append(q.workers, worker.Start(tb))
	}
	return q
}

// name returns the application_name of a process's client.
func (q *queue) name(i int) string { return fmt.Sprintf("frozen-%d-%d", q.number, i) }

func (q *queue) measure(ctx context.Context, rounds int, result *Thawed) {
	defer q.control.close()
	for _, p := range q.workers[1 : len(q.workers)-1] {
		thaw, err := thawer(p.PID())
		require.NoError(q.tb, err)
		defer thaw()
	}
	if !q.leader {
		q.open("client")
	}
	var times []int64
	void := 0
	for i := 0; i < rounds && ctx.Err() == nil; i++ {
		round := q.round
		if q.leader {
			round = q.term
		}
		took, counts := round(ctx, i+void)
		if !counts {
			void++
			require.Less(q.tb, void, 10+rounds, "%s: each time a process was granted it just before it froze", q.Name)
			i--
			continue
		}
		times = append(times, took)
		if bound := time.Duration(q.Frozen) * FrozenBound; time.Duration(took) > bound {
			result.Violations = append(result.Violations, fmt.Sprintf("round %d: %v after the release, at most %v", i, time.Duration(took), bound))
		}
	}
	spread := lab.NewSpread(times)
	result.Rounds, result.P50, result.Max = len(spread), spread.At(50), spread.Max()
}

// open opens a client in every process.
func (q *queue) open(client string) {
	var calls []*worker.Call
	for i, p := range q.workers {
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Open, Client: client, DSN: q.home.url("") + "&application_name=" + q.name(i), TTL: q.ttl,
		}))
	}
	for _, call := range calls {
		call.Wait()
	}
}

// acquire returns the command of every process.
func (q *queue) acquire(key string) worker.Command {
	cmd := q.what
	cmd.Do, cmd.Client, cmd.Key, cmd.As, cmd.Within = worker.Acquire, "client", key, key, 5*time.Minute
	if cmd.N > 0 {
		cmd.Key = "storm/one"
	}
	return cmd
}

// round is one hand-over: the first holds, the others line up, all but the last are frozen, the first releases. It does not count
// if one that was frozen has what was released: then it froze as a holder.
func (q *queue) round(ctx context.Context, number int) (took int64, counts bool) {
	key := fmt.Sprintf("frozen/%d/%d", q.number, number)
	holder, last := q.workers[0], len(q.workers)-1
	take := q.acquire(key)
	if !q.what.Shared {
		require.True(q.tb, holder.Do(take).Result.OK())
	} else { // readers wait for a writer only
		exclusive := take
		exclusive.Shared = false
		require.True(q.tb, holder.Do(exclusive).Result.OK())
	}
	var waits []*worker.Call
	for i, p := range q.workers[1:] {
		waits = append(waits, p.Begin(take))
		q.linedUp(ctx, i+1)
	}
	q.signal(syscall.SIGSTOP)
	released := holder.Release(key)
	require.True(q.tb, released.OK(), released.Err)
	counts = true
	grant, ok := worker.Answer{}, false
	for end := time.Now().Add(time.Duration(last) * q.ttl); !ok && counts && time.Now().Before(end); {
		if grant, ok = waits[last-1].Answer(2 * time.Second); !ok {
			counts = !q.frozenHasIt(ctx)
		}
	}
	q.signal(syscall.SIGCONT)
	var all sync.WaitGroup // those that were frozen, in whichever order; one of them may be before the last
	for i, wait := range waits[:last-1] {
		all.Go(func() {
			if answer := wait.Wait(); answer.Result.OK() {
				q.workers[i+1].Release(key)
			} else {
				q.tb.Errorf("%s: a waiter that was frozen got nothing: %s", q.Name, answer.Result.Err)
			}
		})
	}
	if !ok {
		grant = waits[last-1].Wait()
	}
	require.True(q.tb, grant.Result.OK(), grant.Result.Err)
	q.workers[last].Release(key)
	all.Wait()
	return grant.Result.At - released.Called, counts
}

// frozenHasIt reports whether a frozen process has what was released. The one whose turn at a permit or a lease it is asks for it
// every now and then, and what it has asked for before it froze may be granted afterwards.
func (q *queue) frozenHasIt(ctx context.Context) bool {
	held := `SELECT count(*) FROM (SELECT holder FROM pgbaton.lease UNION ALL SELECT holder FROM pgbaton.lease_share) AS h
		JOIN pgbaton.lock_client AS c ON c.id = h.holder JOIN pg_stat_activity AS a USING (pid) WHERE a.application_name = $1`
	if q.what.N > 0 {
		held = `SELECT count(*) FROM pgbaton.slot AS s JOIN pg_locks AS l ON (l.classid::bigint << 32 | l.objid::bigint) = s.holder
			JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND a.application_name = $1`
	}
	for i := range q.Frozen {
		n, err := q.control.count(ctx, held, q.name(i+1))
		require.NoError(q.tb, err)
		if n > 0 {
			return true
		}
	}
	return false
}

func (q *queue) signal(sig syscall.Signal) {
	for _, p := range q.workers[1 : len(q.workers)-1] {
		p.Signal(sig)
	}
}

// linedUp waits until a process waits in the server's queue, or at its head, and does nothing more than that; or asks for leases.
func (q *queue) linedUp(ctx context.Context, i int) {
	const seen = `SELECT count(*) FROM pg_stat_activity AS a LEFT JOIN pg_locks AS l ON l.pid = a.pid AND l.locktype = 'advisory'
		WHERE a.application_name = $1 AND (a.query LIKE '%acquire_leases(%' OR NOT l.granted
		   OR l.granted AND (a.query LIKE '%wait_for_turn%' OR a.query LIKE '%claim_slots%'))`
	for end := time.Now().Add(lab.Hang); ; {
		n, err := q.control.count(ctx, seen, q.name(i))
		require.NoError(q.tb, err)
		if n > 0 {
			break
		}
		require.True(q.tb, time.Now().Before(end), "process %d of line %q does not line up", i, q.Name)
		require.True(q.tb, rest(ctx, 2*time.Millisecond), "interrupted")
	}
	require.True(q.tb, rest(ctx, 2*askedAgain), "interrupted") // its place is settled
}

// term is one hand-over of a leader, with clients of their own. It always counts.
func (q *queue) term(ctx context.Context, number int) (took int64, counts bool) {
	client, name, last := fmt.Sprintf("client-%d", number), fmt.Sprintf("frozen/%d/%d", q.number, number), len(q.workers)-1
	q.open(client)
	candidate := worker.Command{Do: worker.Lead, Client: client, Key: name}
	q.workers[0].Do(candidate)
	q.elected(ctx, 0, name)
	for _, p := range q.workers[1:] {
		p.Do(candidate)
	}
	require.True(q.tb, rest(ctx, 1500*time.Millisecond), "interrupted") // each has tried once
	q.signal(syscall.SIGSTOP)
	resigned := q.workers[0].Do(worker.Command{Do: worker.Resign, Client: client, Key: name}).Result
	require.True(q.tb, resigned.OK(), resigned.Err)
	got := q.elected(ctx, last, name)
	q.signal(syscall.SIGCONT)
	var closing []*worker.Call
	for _, p := range q.workers {
		closing = append(closing, p.Begin(worker.Command{Do: worker.Close, Client: client}))
	}
	for _, call := range closing {
		call.Wait()
	}
	return got - resigned.Called, true
}

// elected waits until a process leads, and returns since when.
func (q *queue) elected(ctx context.Context, i int, name string) int64 {
	for end := time.Now().Add(5 * q.ttl); ; {
		var op int64
		for _, e := range q.workers[i].Events() {
			switch {
			case e.Kind == history.Call && e.Key == name:
				op = e.Op
			case e.Kind == history.Granted && e.Op == op:
				return e.At
			}
		}
		require.True(q.tb, time.Now().Before(end), "process %d does not lead", i)
		require.True(q.tb, rest(ctx, 5*time.Millisecond), "interrupted")
	}
}
