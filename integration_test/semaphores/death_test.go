package semaphores

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Law 6: the permits of a killed process go to a waiter in another one within a second, long before TTL.
func TestKill_Holder(t *testing.T) {
	t.Parallel()
	rounds := testkit.Brief(6, 3)
	dsn := lab.Database(t)
	waiter := worker.Start(t)
	waiter.Open("c", dsn, 0)
	var spans []int64
	for i := range rounds {
		name := fmt.Sprint("kill/", i)
		s := create(t, dsn, name, 3)
		holder := worker.Start(t)
		holder.Open("c", dsn, 0)
		held := hold(t, holder, name, 2)
		call := waitFor(t, waiter, name, 2)
		killed := holder.Kill()
		r := call.Wait().Result
		require.True(t, r.OK(), r.Err)
		require.Greater(t, r.Token, held.Token)
		spans = append(spans, r.At-killed)
		judge(t, fixed(3), holder)
		require.True(t, waiter.Release(name).OK())
		requireWhole(t, s, 3)
	}
	lab.Report(t, "SIGKILL of a holder to the grant of its permits", lab.NewSpread(spans), time.Second)
}

// A waiter that is killed holds up nobody behind it.
func TestKill_Waiter(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	s := create(t, dsn, "s", 2)
	holder, first, second := worker.Start(t), worker.Start(t), worker.Start(t)
	for _, p := range []*worker.Process{holder, first, second} {
		p.Open("c", dsn, 0)
	}
	hold(t, holder, "s", 2)
	waitFor(t, first, "s", 2)
	call := waitFor(t, second, "s", 1)
	killed := first.Kill()
	time.Sleep(50 * time.Millisecond) // the server may not have noticed by then; that is part of what is bounded
	require.True(t, holder.Release("s").OK())
	r := call.Wait().Result
	require.True(t, r.OK(), r.Err)
	lab.Report(t, "SIGKILL of a waiter to the grant to the one behind", lab.NewSpread([]int64{r.At - killed}), 3*time.Second)
	require.True(t, second.Release("s").OK())
	requireWhole(t, s, 2)
}

// Laws 4, 5 and 6: a frozen holder's permits are granted within TTL + 1 s, and when it wakes up it is told before
// anything says that they are held. It is mostly asleep, so it runs beside itself.
func TestFreeze_Holder(t *testing.T) {
	t.Parallel()
	for tenths, ttl := range map[int]time.Duration{3: 8 * time.Second, 11: 3 * time.Second, 30: 3 * time.Second} {
		if tenths == 30 && testing.Short() {
			continue // 11 is the same with less room
		}
		t.Run(fmt.Sprintf("%d tenths of TTL", tenths), func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			create(t, dsn, "s", 2)
			holder, next := worker.Start(t), worker.Start(t)
			holder.Open("c", dsn, ttl)
			next.Open("c", dsn, 0)
			hold(t, holder, "s", 2)
			holder.Begin(worker.Command{Do: worker.Watch, As: "s"}) // for the history: when Done was closed
			assert := worker.Command{Do: worker.Assert, As: "s", DSN: dsn}
			held := holder.Do(assert).Result
			require.True(t, held.OK(), held.Err)
			call := waitFor(t, next, "s", 2)
			guard := holder.Begin(worker.Command{Do: worker.Guard, Client: "c", Key: "s", As: "s", N: 2})
			time.Sleep(500 * time.Millisecond) // it is guarded by then
			frozen := history.Now()
			holder.Signal(syscall.SIGSTOP)
			time.Sleep(ttl * time.Duration(tenths) / 10)
			thawed := history.Now()
			holder.Signal(syscall.SIGCONT)

			if tenths < 10 { // what it still holds it may release
				worker.CheckHeld(t, guard.Wait().Steps, frozen, ttl)
				require.True(t, call.Wait().Result.OK())
				judge(t, fixed(2), holder, next)
				return
			}
			steps, granted := guard.Wait().Steps, call.Wait().Result
			require.True(t, granted.OK(), granted.Err)
			worker.CheckThaw(t, steps, granted, thawed)
			require.True(t, steps[1].Lost, "after %v they are not held: %+v", ttl, steps[1])
			require.True(t, holder.Do(worker.Command{Do: worker.Release, As: "s"}).Result.Lost, "also the second time")
			require.True(t, holder.Do(assert).Result.Lost, "not what a transaction may rely on")
			if tenths == 30 {
				require.Less(t, granted.At, thawed, "the server frees them, and not the holder")
			}
			lab.Report(t, fmt.Sprintf("frozen for %d/10 TTL, permits granted after", tenths),
				lab.NewSpread([]int64{granted.At - frozen}), ttl+time.Second)
			_, overlaps := judge(t, fixed(2), holder, next)
			testkit.Figure(t, "frozen for %d/10 TTL, Done closed after the next grant: %v", tenths, lab.NewSpread(overlaps))
		})
	}
}
