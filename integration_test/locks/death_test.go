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
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// wait starts to wait for a key and returns when the server has it in the queue.
func wait(t *testing.T, control *pgx.Conn, p *worker.Process, name, key string) *worker.Call {
	t.Helper()
	call := p.Begin(worker.Command{Do: worker.Acquire, Client: "c", Key: key, As: key})
	testkit.Eventually(t, "the waiter stands in the server's queue",
		func() bool { return testkit.Waiting(t, control, name) > 0 })
	return call
}

// Law 6: what a killed process held is free in milliseconds, though its holder was idle.
func TestKill_Holder(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(12, 4)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	waiter := worker.Start(t)
	waiter.Open("c", testkit.Named(t, dsn, "waiter"), 0)
	workers := []*worker.Process{waiter}
	var spans []int64
	for i := range rounds {
		key := fmt.Sprint("kill/", i)
		holder := worker.Start(t)
		holder.Open("c", dsn, 0)
		held := holder.Hold("c", key)
		next := wait(t, control, waiter, "waiter", key)
		killed := holder.Kill()
		r := next.Wait().Result
		require.True(t, r.OK(), r.Err)
		require.Greater(t, r.Token, held.Token)
		spans = append(spans, r.At-killed)
		require.True(t, waiter.Release(key).OK())
		workers = append(workers, holder)
	}
	lab.Report(t, "SIGKILL of the holder to the next grant", lab.NewSpread(spans), 250*time.Millisecond)
	judge(t, workers...)
}

// A waiter that is killed leaves the queue, and those behind it go on.
func TestKill_Waiter(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	holder, first, second := worker.Start(t), worker.Start(t), worker.Start(t)
	holder.Open("c", dsn, 0)
	first.Open("c", testkit.Named(t, dsn, "first"), 0)
	second.Open("c", testkit.Named(t, dsn, "second"), 0)
	holder.Hold("c", "k")
	wait(t, control, first, "first", "k")
	call := wait(t, control, second, "second", "k")
	killed := first.Kill()
	testkit.Eventually(t, "the killed waiter's sessions are gone",
		func() bool { return len(testkit.Sessions(t, control, "first")) == 0 })
	testkit.Figure(t, "SIGKILL of a waiter to its place in the queue gone: %v", time.Duration(history.Now()-killed))
	released := holder.Release("k")
	require.True(t, released.OK())
	r := call.Wait().Result
	require.True(t, r.OK(), r.Err)
	lab.Report(t, "grant to the waiter behind", lab.NewSpread([]int64{r.At - released.Called}), 250*time.Millisecond)
}

// Laws 4, 5 and 6: a frozen holder's lock is free within TTL + 1 s, and when it wakes up it is told of the
// loss before anything says that the lock is held. It is mostly asleep, so it runs beside itself.
func TestFreeze_Holder(t *testing.T) {
	t.Parallel()
	for tenths, ttl := range map[int]time.Duration{3: 8 * time.Second, 9: 3 * time.Second, 11: 3 * time.Second, 30: 3 * time.Second} {
		if tenths == 30 && testing.Short() {
			continue // 11 is the same with less room
		}
		t.Run(fmt.Sprintf("%d tenths of TTL", tenths), func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			control := testkit.Connect(t, dsn)
			holder, next := worker.Start(t), worker.Start(t)
			holder.Open("c", dsn, ttl)
			next.Open("c", testkit.Named(t, dsn, "next"), 0)
			holder.Hold("c", "k")
			holder.Hold("c", "watched")
			watch := holder.Begin(worker.Command{Do: worker.Watch, As: "watched"})
			holder.Begin(worker.Command{Do: worker.Watch, As: "k"}) // for the history: when Done was closed
			call := wait(t, control, next, "next", "k")
			guard := holder.Begin(worker.Command{Do: worker.Guard, Client: "c", Key: "k", As: "k"})
			// Its last sign of life is fresh.
			holder.Hold("c", "fresh")
			require.True(t, holder.Release("fresh").OK())
			frozen := history.Now()
			holder.Signal(syscall.SIGSTOP)
			time.Sleep(ttl * time.Duration(tenths) / 10)
			thawed := history.Now()
			holder.Signal(syscall.SIGCONT)

			steps := guard.Wait().Steps
			granted := call.Wait().Result
			require.True(t, granted.OK(), granted.Err)
			worker.CheckThaw(t, steps, granted, thawed)
			if tenths > 10 {
				require.True(t, steps[1].Lost, "after %v it is not held: %+v", ttl, steps[1])
				told := watch.Wait().Result
				require.True(t, told.Lost, told.Err)
				lab.Report(t, fmt.Sprintf("frozen for %d/10 TTL, freed after", tenths),
					lab.NewSpread([]int64{granted.At - frozen}), ttl+time.Second)
				lab.Report(t, "Done closed after waking up", lab.NewSpread([]int64{told.At - thawed}), 250*time.Millisecond)
			}
			if tenths == 3 {
				worker.CheckHeld(t, steps, frozen, ttl)
			}
			if tenths == 30 {
				require.Less(t, granted.At, thawed, "the server frees it, and not the holder")
			}
			// The process stands still for most of this.
			overlaps := lab.NewSpread(judge(t, holder, next))
			lab.Report(t, fmt.Sprintf("frozen for %d/10 TTL, Done closed after the next grant", tenths), overlaps, 3*ttl)
		})
	}
}

// Law 5: when the server ends a session, its holders are told within milliseconds; the client replaces it by
// itself and the next acquire works.
func TestTerminate(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(20, 5)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	holder, next := worker.Start(t), worker.Start(t)
	holder.Open("c", testkit.Named(t, dsn, "holder"), 0)
	next.Open("c", testkit.Named(t, dsn, "next"), 0)
	var told, grants, overlaps, replaced []int64
	for i := range rounds {
		key := fmt.Sprint("terminate/", i)
		holder.Hold("c", key)
		watch := holder.Begin(worker.Command{Do: worker.Watch, As: key})
		call := wait(t, control, next, "next", key)
		ended := history.Now()
		require.Positive(t, terminate(t, control, "holder"))
		loss, granted := watch.Wait().Result, call.Wait().Result
		require.True(t, loss.Lost, loss.Err)
		require.True(t, granted.OK(), granted.Err)
		told, grants = append(told, loss.At-ended), append(grants, granted.At-ended)
		if granted.At < loss.At {
			overlaps = append(overlaps, loss.At-granted.At)
		}
		require.True(t, holder.Release(key).Lost, "a release of a lost lock says so")
		called := history.Now()
		again := holder.Hold("c", key+"/again")
		replaced = append(replaced, again.At-called)
		require.True(t, holder.Release(key+"/again").OK())
		require.True(t, next.Release(key).OK())
	}
	lab.Report(t, "pg_terminate_backend of an anchor to the holder told", lab.NewSpread(told), 250*time.Millisecond)
	lab.Report(t, "… to the next grant elsewhere", lab.NewSpread(grants), 500*time.Millisecond)
	lab.Report(t, "… overlap of belief", lab.NewSpread(overlaps), 100*time.Millisecond)
	lab.Report(t, "… next acquire on a new anchor", lab.NewSpread(replaced), 2*time.Second)
	judge(t, holder, next)
}

// terminate ends the sessions with an application_name.
func terminate(t *testing.T, control *pgx.Conn, name string) int64 {
	t.Helper()
	tag, err := control.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name = $1 AND datname = current_database() AND pid <> pg_backend_pid()`, name)
	require.NoError(t, err)
	return tag.RowsAffected()
}

// A waiting session that is ended costs a waiter nothing but time.
func TestTerminate_Waiter(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(10, 4)
	dsn := lab.Database(t)
	control := testkit.Connect(t, dsn)
	holder, next := worker.Start(t), worker.Start(t)
	holder.Open("c", dsn, 0)
	next.Open("c", testkit.Named(t, dsn, "next"), 0)
	var spans []int64
	for i := range rounds {
		key := fmt.Sprint("waiter/", i)
		holder.Hold("c", key)
		call := wait(t, control, next, "next", key)
		tag, err := control.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = 'next' AND datname = current_database() AND wait_event = 'advisory'`)
		require.NoError(t, err)
		require.Positive(t, tag.RowsAffected())
		testkit.Eventually(t, "it waits again", func() bool { return testkit.Waiting(t, control, "next") > 0 })
		released := holder.Release(key)
		require.True(t, released.OK())
		r := call.Wait().Result
		require.True(t, r.OK(), r.Err)
		spans = append(spans, r.At-released.Called)
		require.True(t, next.Release(key).OK())
	}
	lab.Report(t, "grant after the waiting session was ended and replaced", lab.NewSpread(spans), time.Second)
	judge(t, holder, next)
}
