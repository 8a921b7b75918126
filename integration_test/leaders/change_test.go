package leaders

import (
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A leader that resigns, by itself or because another process asked for it, is replaced within milliseconds.
func TestChange_Resign(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(3, 1)
	f := newFleet(t, lab.Database(t), 0, 3, worker.Command{Key: "resign", Count: 15})
	for _, name := range f.names() {
		f.after(name, 0)
	}
	time.Sleep(200 * time.Millisecond) // all rows are written, all listen
	var own, asked []int64
	for round := range rounds {
		if round > 0 {
			time.Sleep(2500 * time.Millisecond) // until nobody holds back any longer
		}
		for i, name := range f.names() {
			old := f.newest(name)
			if i%2 == 0 {
				r := old.process.Do(worker.Command{Do: worker.Resign, Client: "c", Key: name}).Result
				require.True(t, r.OK(), r.Err)
			} else {
				r := f.alive[0].Do(worker.Command{Do: worker.AskResign, Client: "c", Key: name}).Result
				require.True(t, r.OK(), r.Err)
			}
			next := f.after(name, old.Token)
			span := next.Got - f.end(name, old.Token)
			if span < int64(holdsBack) {
				require.NotSame(t, old.process, next.process, "who has resigned holds back")
			}
			if i%2 == 0 {
				own = append(own, span)
			} else {
				asked = append(asked, span)
			}
		}
	}
	for what, spans := range map[string][]int64{"Resign": own, "RequestResign": asked} {
		s := lab.NewSpread(spans)
		lab.Report(t, what+", from the end of the func to the next leader's", s, 1500*time.Millisecond) // at the next round without the notification
		if lab.Figures() {
			require.LessOrEqual(t, s.At(90), 50*time.Millisecond)
		}
	}
	require.Empty(t, f.judge(), "resignations do not overlap")
}

// holdsBack is less than for how long who has resigned leaves the others the precedence.
const holdsBack = time.Second

// end is when a term ended, as its leader saw it.
func (f *fleet) end(name string, token int64) int64 {
	f.t.Helper()
	for _, p := range f.all {
		grants, _ := p.History()
		for _, g := range grants {
			if g.Key == name && g.Token == token {
				return g.End
			}
		}
	}
	require.FailNow(f.t, "no such term")
	return 0
}

// A leader that is killed is replaced at the next round of the others.
func TestChange_Kill(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(5, 2)
	f := newFleet(t, lab.Database(t), 0, 3, worker.Command{Key: "kill", Count: 10})
	var spans []int64
	for _, name := range f.names() {
		f.after(name, 0)
	}
	for range rounds {
		victim := f.newest(f.names()[0]).process
		led := map[string]int64{}
		for _, name := range f.names() {
			if r := f.newest(name); r.process == victim {
				led[name] = r.Token
			}
		}
		killed := victim.Kill()
		f.drop(victim)
		for name, token := range led {
			spans = append(spans, f.after(name, token).Got-killed)
		}
		f.join()
	}
	lab.Report(t, "SIGKILL of the leader to the next leader's func", lab.NewSpread(spans), 1500*time.Millisecond)
	testkit.Figure(t, "overlap of terms: %v", lab.NewSpread(f.judge()))
}

// A leader that stands still is replaced within a TTL and a second, and is told when it runs again. What it writes
// late is refused.
func TestChange_Freeze(t *testing.T) {
	t.Parallel()
	const ttl = 2 * time.Second
	rounds := testkit.Brief(4, 2)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	testkit.Exec(t, control, "CREATE TABLE written (seq bigserial PRIMARY KEY, name text NOT NULL, term bigint NOT NULL)")
	f := newFleet(t, dsn, ttl, 2, worker.Command{Key: "freeze", DSN: dsn})
	var spans, told []int64
	for range rounds {
		old := f.after("freeze", 0)
		time.Sleep(rand.N(ttl)) //nolint:gosec // at any time between two signs of life
		frozen := history.Now()
		old.process.Signal(syscall.SIGSTOP)
		next := f.after("freeze", old.Token)
		spans = append(spans, next.Got-frozen)
		time.Sleep(100 * time.Millisecond) // it writes
		thawed := history.Now()
		old.process.Signal(syscall.SIGCONT)
		testkit.Eventually(t, "the old leader is told", func() bool {
			return f.end("freeze", old.Token) < history.Now()
		})
		told = append(told, f.end("freeze", old.Token)-thawed)
	}
	lab.Report(t, "SIGSTOP of the leader to the next leader's func, TTL 2 s", lab.NewSpread(spans), ttl+1200*time.Millisecond)
	lab.Report(t, "SIGCONT to the old leader told", lab.NewSpread(told), time.Second)
	awaitWrite(t, control)
	f.judge()
	requireOrder(t, dsn)
}

// awaitWrite waits until a leader has written, which takes a transaction: more than a short term has on a slow machine.
func awaitWrite(t *testing.T, control *pgx.Conn) {
	t.Helper()
	testkit.Eventually(t, "a leader writes", func() bool { return testkit.Value[int](t, control, "SELECT count(*) FROM written") > 0 })
}

// requireOrder checks that no leader wrote after a newer one had.
func requireOrder(t *testing.T, dsn string) {
	t.Helper()
	control := testkit.Connect(t, dsn)
	require.Positive(t, testkit.Value[int](t, control, "SELECT count(*) FROM written"))
	require.Zero(t, testkit.Value[int](t, control, `
SELECT count(*) FROM (SELECT term < max(term) OVER (PARTITION BY name ORDER BY seq) AS late FROM written) AS w WHERE late`))
}

// Leaders are killed, frozen and asked to resign at random: terms rise, no two leaders believe in themselves at
// once but for what a loss explains, and their fenced writes are in order.
func TestChange_Chaos(t *testing.T) {
	t.Parallel()
	const ttl = time.Second
	load := testkit.Brief(12*time.Second, 5*time.Second)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	testkit.Exec(t, control, "CREATE TABLE written (seq bigserial PRIMARY KEY, name text NOT NULL, term bigint NOT NULL)")
	f := newFleet(t, dsn, ttl, 3, worker.Command{Key: "chaos", DSN: dsn})
	counts := map[string]int{}
	last := int64(0)
	for end := time.Now().Add(load); time.Now().Before(end); {
		leader := f.after("chaos", last)
		last = leader.Token
		counts["terms"]++
		time.Sleep(rand.N(300 * time.Millisecond)) //nolint:gosec // no secret
		switch rand.IntN(4) {                      //nolint:gosec // no secret
		case 0:
			counts["killed"]++
			leader.process.Kill()
			f.drop(leader.process)
			f.join()
		case 1:
			counts["frozen"]++
			leader.process.Signal(syscall.SIGSTOP)
			time.Sleep(rand.N(2 * ttl)) //nolint:gosec // no secret
			leader.process.Signal(syscall.SIGCONT)
			if f.newest("chaos").Token == last { // it was back in time
				last--
			}
		default:
			counts["asked"]++
			f.alive[0].Do(worker.Command{Do: worker.AskResign, Client: "c", Key: "chaos"})
			if f.newest("chaos").Token == last {
				time.Sleep(100 * time.Millisecond)
				last--
			}
		}
	}
	awaitWrite(t, control)
	testkit.Figure(t, "chaos: %v; overlaps after losses: %v", counts, lab.NewSpread(f.judge()))
	requireOrder(t, dsn)
}
