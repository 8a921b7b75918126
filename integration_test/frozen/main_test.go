// Package frozen tests that a waiter which freezes, wherever it stands, costs those behind it a second and a half at the
// most: clients run in processes of their own, which are stopped by a signal. TTL is a minute everywhere, so that what is
// served in less was not served by that.
package frozen

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(lab.Run{M: m})
}

const (
	ttl = time.Minute
	// law is what a frozen waiter may cost.
	law = 1500 * time.Millisecond
)

// scene is a database with processes, each known by the name of its sessions.
type scene struct {
	t       *testing.T
	dsn     string
	control *pgx.Conn
	frozen  []*worker.Process
}

func open(t *testing.T, dsn string) *scene {
	t.Helper()
	return &scene{t: t, dsn: dsn, control: testkit.Connect(t, dsn)}
}

// start starts a process whose sessions have a name.
func (s *scene) start(name string, options worker.Command) *worker.Process {
	s.t.Helper()
	p := worker.Start(s.t)
	options.Do, options.Client, options.TTL = worker.Open, "c", ttl
	if options.DSN == "" {
		options.DSN = testkit.Named(s.t, s.dsn, name)
	}
	p.Do(options)
	return p
}

// freeze stops a process.
func (s *scene) freeze(p *worker.Process) (at int64) {
	s.t.Helper()
	p.Signal(syscall.SIGSTOP)
	s.frozen = append(s.frozen, p)
	return history.Now()
}

// thaw lets all processes run again: they are to end as if nothing had been.
func (s *scene) thaw() {
	for _, p := range s.frozen {
		p.Signal(syscall.SIGCONT)
	}
}

// stands waits until a session with a name waits for an advisory lock.
func (s *scene) stands(name string) {
	s.t.Helper()
	testkit.Eventually(s.t, name+" stands in the server's queue",
		func() bool { return testkit.Waiting(s.t, s.control, name) > 0 })
}

// heads waits until a session with a name stands at the gate of the semaphore s, be it the first there or not.
func (s *scene) heads(name string) {
	s.t.Helper()
	testkit.Eventually(s.t, name+" stands at the gate", func() bool {
		return testkit.Value[bool](s.t, s.control, `SELECT EXISTS (
			SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
			 WHERE a.application_name = $1 AND a.datname = current_database() AND l.locktype = 'advisory' AND l.objsubid = 1 AND l.mode = 'ExclusiveLock'
			   AND (l.classid::bigint << 32 | l.objid::bigint) = pgbaton.key('pgbaton/semaphore/s'))`, name)
	})
}

// cost reports how long after a moment a call was answered well.
func (s *scene) cost(what string, from int64, call *worker.Call) {
	s.t.Helper()
	answer, ok := call.Answer(ttl / 3)
	if !ok {
		s.explain() // in time: what a session of a frozen process has, it has for a TTL
		answer = call.Wait()
	}
	require.Empty(s.t, answer.Fail)
	r := answer.Result
	require.True(s.t, r.OK(), r.Err)
	lab.Report(s.t, what, lab.NewSpread([]int64{r.At - from}), law)
}

// explain logs who has and wants which advisory lock now.
func (s *scene) explain() {
	s.t.Helper()
	rows, err := s.control.Query(s.t.Context(), `
		SELECT format('%s %s: %s, granted %s; %s since %s: %s', a.pid, a.application_name, l.mode, l.granted, a.state,
		              now() - a.state_change, a.query) || format(' (key %s/%s/%s)', l.classid, l.objid, l.objsubid)
		  FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
		 WHERE l.locktype = 'advisory' AND a.datname = current_database() ORDER BY 1`)
	if err != nil {
		s.t.Log(err)
		return
	}
	locks, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.t.Log("after ", ttl/3, ": ", strings.Join(locks, "\n"), err)
}

func acquire(key string, shared bool, permits int) worker.Command {
	return worker.Command{Do: worker.Acquire, Client: "c", Key: key, As: key, Shared: shared, N: permits}
}

func named(name string, i int) string { return fmt.Sprint(name, i) }
