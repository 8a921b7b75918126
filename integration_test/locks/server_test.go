package locks

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// survivors are holders in two processes that are to live through something that happens to the server.
type survivors struct {
	workers []*worker.Process
	watches []*worker.Call
	token   int64 // greatest so far
}

func newSurvivors(t *testing.T, dsn string) *survivors {
	t.Helper()
	s := &survivors{}
	for i := range 2 {
		p := worker.Start(t)
		p.Open("c", dsn, 0)
		s.workers = append(s.workers, p)
		r := p.Hold("c", fmt.Sprint("held/", i))
		s.watches = append(s.watches, p.Begin(worker.Command{Do: worker.Watch, As: fmt.Sprint("held/", i)}))
		s.token = max(s.token, r.Token)
	}
	return s
}

// told waits until every holder was told.
func (s *survivors) told(t *testing.T, since int64) (spans []int64) {
	t.Helper()
	for _, watch := range s.watches {
		r := watch.Wait().Result
		require.True(t, r.Lost, r.Err)
		spans = append(spans, r.At-since)
	}
	return spans
}

// recover acquires the keys again, without any help: tokens must rise.
func (s *survivors) recover(t *testing.T) {
	t.Helper()
	for i, p := range s.workers {
		r := p.Hold("c", fmt.Sprint("held/", 1-i))
		require.Greater(t, r.Token, s.token, "a token that was handed out before")
		s.token = r.Token
		require.True(t, p.Release(fmt.Sprint("held/", 1-i)).OK())
	}
	judge(t, s.workers...)
}

// What a server goes through: the crash of one of its processes, of all, and a clean restart. Every holder is
// told, clients come back by themselves, and tokens rise.
func TestServer(t *testing.T) { //nolint:tparallel // one thing after the other happens to its server
	t.Parallel()
	server := lab.OwnServer(t, map[string]string{"wal_writer_delay": "10s", "restart_after_crash": "on"})
	dsn := lab.DatabaseOn(t, server)
	t.Run("kill -9 of one unrelated backend", func(t *testing.T) {
		s := newSurvivors(t, dsn)
		bystander, err := pgx.Connect(context.Background(), dsn)
		require.NoError(t, err)
		killed := history.Now()
		require.NoError(t, syscall.Kill(int(bystander.PgConn().PID()), syscall.SIGKILL))
		lab.Report(t, "kill -9 of a backend to the holders told", lab.NewSpread(s.told(t, killed)), time.Second)
		s.recover(t)
		_ = bystander.Close(context.Background())
	})
	t.Run("clean restart", func(t *testing.T) {
		s := newSurvivors(t, dsn)
		require.NoError(t, server.Restart(context.Background(), "fast"))
		s.told(t, 0)
		s.recover(t)
	})
	t.Run("crash with tokens that were not flushed", func(t *testing.T) { crashUnflushed(t, server, dsn) })
}

// crashUnflushed lets another session's open transaction write the sequence's record, so that nobody flushes it
// for the tokens that are drawn next; then the server crashes and forgets them.
func crashUnflushed(t *testing.T, server *pgserver.Server, dsn string) {
	t.Helper()
	const draws = 20 // fewer than a record covers
	conn, err := pgx.Connect(context.Background(), dsn)
	require.NoError(t, err)
	testkit.Exec(t, conn, "CHECKPOINT")
	testkit.Exec(t, conn, "BEGIN")
	before := testkit.Value[int64](t, conn, "SELECT nextval('pgbaton.token')")
	p := worker.Start(t)
	p.Open("c", dsn, 0)
	token := int64(0)
	for range draws {
		token = p.Hold("c", "k").Token
		require.True(t, p.Release("k").OK())
	}
	require.Greater(t, token, before)
	p.Kill()
	require.NoError(t, server.Restart(context.Background(), "immediate"))
	_ = conn.Close(context.Background())
	left := testkit.Value[int64](t, testkit.Connect(t, dsn), "SELECT last_value FROM pgbaton.token")
	testkit.Figure(t, "last token %d, the sequence after the crash %d", token, left)
	require.Less(t, left, token, "the crash was to forget tokens; without that this test proves nothing")
	next := worker.Start(t)
	next.Open("c", dsn, 0)
	r := next.Hold("c", "k")
	require.Greater(t, r.Token, token)
	judge(t, p, next)
}

// A synchronous standby that is away stops commits, but neither acquire nor release nor hand-over.
func TestServer_SynchronousStandbyAway(t *testing.T) {
	t.Parallel()
	server := lab.OwnServer(t, nil)
	dsn := lab.DatabaseOn(t, server)
	a, b := worker.Start(t), worker.Start(t)
	a.Open("first", dsn, 0) // the token sequence is made sure of before
	control := testkit.Connect(t, dsn)
	testkit.Exec(t, control, "SET synchronous_commit = local")
	testkit.Exec(t, control, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	testkit.Exec(t, control, "SELECT pg_reload_conf()")
	testkit.Eventually(t, "the setting counts", func() bool {
		return testkit.Value[string](t, control, "SHOW synchronous_standby_names") == "nobody"
	})
	a.Open("c", dsn, 0)
	b.Open("c", testkit.Named(t, dsn, "b"), 0)
	for i := range testkit.Brief(20, 8) {
		key := fmt.Sprint("sync/", i)
		a.Hold("c", key)
		call := wait(t, control, b, "b", key)
		require.True(t, a.Release(key).OK())
		r := call.Wait().Result
		require.True(t, r.OK(), r.Err)
		require.True(t, b.Release(key).OK())
	}
	judge(t, a, b)
	testkit.Exec(t, control, "ALTER SYSTEM RESET synchronous_standby_names")
	testkit.Exec(t, control, "SELECT pg_reload_conf()")
}

// A full lock table gives ErrTooManyLocks, no grant that is none, and is forgotten when there is room again.
func TestServer_LockTableFull(t *testing.T) {
	t.Parallel()
	server := lab.OwnServer(t, map[string]string{"max_locks_per_transaction": "10", "max_connections": "25"})
	dsn := lab.DatabaseOn(t, server)
	control := testkit.Connect(t, dsn)
	filler := testkit.Connect(t, dsn)
	p := worker.Start(t)
	p.Do(worker.Command{Do: worker.Open, Client: "c", DSN: testkit.Named(t, dsn, "c"), MaxHeld: 100})
	p.Hold("c", "before")
	var err error
	for i := 0; err == nil; i++ {
		_, err = filler.Exec(context.Background(), "SELECT pg_advisory_lock(42, g) FROM generate_series($1::int, $1 + 9) AS g", i*10)
	}
	require.ErrorContains(t, err, "53200")
	steps := p.Do(worker.Command{Do: worker.AcquireAll, Client: "c", Key: "full", Count: 50, Within: lab.Hang}).Steps
	granted, refused := 0, 0
	for _, r := range steps {
		switch {
		case r.OK():
			granted++
		default:
			require.True(t, r.TooMany, r.Err)
			refused++
		}
	}
	require.NotZero(t, refused)
	require.True(t, p.Do(worker.Command{Do: worker.Err, As: "before"}).Result.OK(), "what was held is still held")
	testkit.Exec(t, filler, "SELECT pg_advisory_unlock_all()")
	require.Equal(t, granted+1, testkit.HeldBy(t, control, "c"), "what the client says and what the server holds")
	r := p.Do(worker.Command{Do: worker.Acquire, Client: "c", Key: "after", As: "after"}).Result
	require.True(t, r.OK(), r.Err)
	testkit.Figure(t, "full lock table: %d refused, %d granted of %d", refused, granted, len(steps))
	judge(t, p)
}
