package poolers

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

const (
	processes  = 30
	serviceTTL = 10 * time.Second
	permits    = 3
	serviceKey = "service"
)

// role is what a process of the service may have.
type role struct {
	name, key string
	capacity  int
}

var roles = []role{
	{"leader", serviceKey + worker.LeaderRole, 1},
	{"cron", serviceKey + worker.CronRole, 1},
	{"permit", serviceKey + worker.PermitRole, permits},
	{"lock", serviceKey + worker.LockRole + "/0", 1},
}

// TestService is a service of 30 processes: one leads, one runs the cron, three have a permit, and all take locks. In each role a
// process is killed, or frozen until another one has the role: somebody has it next, nobody has it beside, and the leader that runs
// again writes nothing late. The figures are the table of times till somebody else had the role.
func TestService(t *testing.T) {
	for name, ground := range grounds {
		t.Run(name, func(t *testing.T) {
			dsn := lab.Database(t)
			testkit.Run(t, dsn, "CREATE TABLE written (seq bigserial PRIMARY KEY, name text NOT NULL, term bigint NOT NULL)")
			_, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), serviceKey+worker.PermitRole, permits)
			require.NoError(t, err)
			open := ground(t, dsn)
			open.TTL = serviceTTL
			f := newFleet(t, processes, open, worker.Command{
				Key: serviceKey, Keys: 8, Hold: 150 * time.Millisecond, Pause: 100 * time.Millisecond,
				DSN: testkit.With(t, open.DSN, "default_query_exec_mode", "exec"),
			})
			rounds := testkit.Brief(3, 1)
			for _, r := range roles {
				for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
					var spans []int64
					for range rounds {
						spans = append(spans, f.strikeRole(r, sig))
					}
					testkit.Figure(t, "service, %s: %s, %v to the next: %v", name, r.name, sig, lab.NewSpread(spans))
				}
			}
			judgeService(t, f)
			requireOrder(t, dsn)
		})
	}
}

// grounds are how the processes reach the server.
var grounds = map[string]func(t *testing.T, dsn string) worker.Command{
	"direct": func(_ *testing.T, dsn string) worker.Command { return worker.Command{DSN: dsn} },
	"through PgBouncer": func(t *testing.T, dsn string) worker.Command {
		t.Helper()
		return worker.Command{DSN: lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 20", "max_client_conn = 500")}
	},
}

// strikeRole kills or freezes a process that has a role, and returns how long it took until others had all of the role.
func (f *fleet) strikeRole(r role, sig syscall.Signal) (span int64) {
	f.t.Helper()
	struck, old, at := f.strike(r.key, sig)
	span = f.taken(r.key, struck, at, r.capacity) - at
	if sig == syscall.SIGSTOP {
		struck.Signal(syscall.SIGCONT)
		testkit.Eventually(f.t, "the holder that was frozen is told", func() bool {
			return slices.ContainsFunc(f.grants(struck, r.key), func(g *history.Grant) bool {
				return g.Op == old.Op && g.End < history.Now()
			})
		})
	}
	return span
}

// judgeService checks exclusion, capacity, tokens and windows over the whole run.
func judgeService(t *testing.T, f *fleet) {
	t.Helper()
	var locks, slots []*history.Grant
	for _, g := range f.end() {
		if g.N > 0 {
			slots = append(slots, g)
		} else {
			locks = append(locks, g)
		}
	}
	overlaps, err := history.Exclusion(locks)
	require.NoError(t, err)
	require.NoError(t, history.Tokens(locks))
	peak, more, err := history.Permits(slots, []history.Resize{{Capacity: permits}})
	require.NoError(t, err)
	require.NoError(t, history.Distinct(slots))
	testkit.Figure(t, "from the next grant until a holder that was frozen ran again and was told: %v; at most %d permits at once",
		lab.NewSpread(append(overlaps, more...)), peak)
	require.NotEmpty(t, f.runs)
	require.NoError(t, history.Windows(f.runs, locks, worker.ServiceWindow))
}

// requireOrder checks that no leader wrote after a newer one had.
func requireOrder(t *testing.T, dsn string) {
	t.Helper()
	control := testkit.Connect(t, dsn)
	require.Positive(t, testkit.Value[int](t, control, "SELECT count(*) FROM written"))
	require.Zero(t, testkit.Value[int](t, control, `
SELECT count(*) FROM (SELECT term < max(term) OVER (PARTITION BY name ORDER BY seq) AS late FROM written) AS w WHERE late`))
}
