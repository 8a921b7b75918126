package semaphores

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	hammerProcesses = 8
	hammerCapacity  = 8
	hammerWeight    = 3 // the most permits at once; the capacity never falls below it
)

// sqlHeld counts the permits that are validly held: not expired, and by a session that lives.
const sqlHeld = `
SELECT count(*)
FROM pgbaton.slot AS s
JOIN pgbaton.semaphore AS m ON m.id = s.semaphore
WHERE m.name = $1 AND s.holder IS NOT NULL AND s.expires_at > clock_timestamp() AND pgbaton.present(s.holder)`

// control changes the capacity of a semaphore, kills processes that use it, and looks at the table.
type control struct {
	conn      *pgx.Conn
	semaphore *pgbaton.Semaphore
	resizes   []history.Resize
	command   worker.Command

	workers []*worker.Process
	live    []*worker.Call // of workers that were not killed
	running []int          // their numbers in workers
	kills   int
	samples int
	peak    int
	most    int // that may be held now: more than the capacity if they were held before it was lowered
}

func (c *control) resize(t *testing.T) {
	t.Helper()
	r := resize(t, c.semaphore)
	c.resizes = append(c.resizes, r)
	c.most = max(c.most, r.Capacity)
}

// resize gives a semaphore a random capacity.
func resize(t *testing.T, s *pgbaton.Semaphore) history.Resize {
	t.Helper()
	r := history.Resize{Called: history.Now(), Capacity: hammerWeight + 1 + rand.IntN(hammerCapacity)} //nolint:gosec // no secret
	require.NoError(t, s.Resize(context.Background(), r.Capacity))
	r.Done = history.Now()
	return r
}

func (c *control) capacity() int { return c.resizes[len(c.resizes)-1].Capacity }

func (c *control) start(t *testing.T) {
	t.Helper()
	p := worker.Start(t)
	c.running = append(c.running, len(c.workers))
	c.workers = append(c.workers, p)
	c.live = append(c.live, p.Begin(c.command))
}

// kill kills a random process, and starts another in its place.
func (c *control) kill(t *testing.T) {
	t.Helper()
	i := rand.IntN(len(c.live)) //nolint:gosec // no secret
	select {
	case <-c.live[i].Settled():
		return // it has done its part
	default:
	}
	c.workers[c.running[i]].Kill()
	c.kills++
	c.live = append(c.live[:i], c.live[i+1:]...)
	c.running = append(c.running[:i], c.running[i+1:]...)
	c.start(t)
}

// sample counts the permits that are held. More than the capacity may be left from before it was lowered, but
// then their number only falls.
func (c *control) sample(t *testing.T) {
	t.Helper()
	held := testkit.Value[int](t, c.conn, sqlHeld, "hammer")
	c.samples++
	c.peak = max(c.peak, held)
	require.LessOrEqual(t, held, c.most, "permits held in the table; capacities so far: %+v", c.resizes)
	c.most = max(c.capacity(), held)
}

func (c *control) working() bool {
	for _, call := range c.live {
		select {
		case <-call.Settled():
		default:
			return true
		}
	}
	return false
}

// Law 1 for semaphores, invariant I2: processes that are killed and started again take 1 to 3 permits at a time, while
// the capacity shrinks and grows. Never are there more holders than permits, and at the end none is missing.
func TestHammer(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	total := loadSize(t)
	c := &control{conn: testkit.Connect(t, dsn), semaphore: create(t, dsn, "hammer", hammerCapacity), resizes: fixed(hammerCapacity), most: hammerCapacity}
	c.command = worker.Command{
		Do: worker.Permits, DSN: dsn, Key: "hammer", N: hammerWeight,
		Goroutines: 4, Count: total / hammerProcesses, Hold: 300 * time.Microsecond,
	}
	for range hammerProcesses {
		c.start(t)
	}
	started := time.Now()
	const mostKills = 12
	resize, kill, sample := time.NewTicker(150*time.Millisecond), time.NewTicker(450*time.Millisecond), time.NewTicker(7*time.Millisecond)
	defer resize.Stop()
	defer kill.Stop()
	defer sample.Stop()
	for c.working() {
		select {
		case <-resize.C:
			c.resize(t)
		case <-kill.C:
			if c.kills < mostKills {
				c.kill(t)
			}
		case <-sample.C:
			c.sample(t)
		}
	}
	granted := int64(0)
	for _, call := range c.live {
		a := call.Wait()
		granted += a.Counts["granted"]
		require.Zero(t, a.Counts["lost"], "nobody lost a permit while alive")
	}
	testkit.Figure(t, "hammer: %d grants in %v by the processes that lived, %d killed, %d resizes, %d samples with at the most %d held",
		granted, time.Since(started), c.kills, len(c.resizes)-1, c.samples, c.peak)
	require.Positive(t, c.kills)
	require.Greater(t, len(c.resizes), 2)
	testkit.Figure(t, "hammer: waits %v", waits(c.workers...))
	_, overlaps := judge(t, c.resizes, c.workers...)
	require.Empty(t, overlaps)
	requireWhole(t, c.semaphore, c.capacity())
	require.Zero(t, testkit.Value[int](t, c.conn, sqlHeld, "hammer"))
}
