package locks

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Law 9 for any deadlock_timeout: no waiter writes a line into the server's log, and yet each is served soon.
func TestQuiet(t *testing.T) {
	t.Parallel()
	watched := testkit.Brief(3*time.Second, 2*time.Second)
	for _, timeout := range testkit.Brief([]string{"1ms", "10ms", "30ms", "1s"}, []string{"1ms", "1s"}) {
		t.Run(timeout, func(t *testing.T) {
			t.Parallel()
			server := lab.OwnServer(t, map[string]string{"log_lock_waits": "on", "deadlock_timeout": timeout})
			dsn := lab.DatabaseOn(t, server)
			_, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), "s", 1)
			require.NoError(t, err)
			holder := worker.Start(t)
			holder.Open("c", dsn, 0)
			holder.Hold("c", "k")
			holder.Hold("c", "set/1")
			require.True(t, holder.Do(worker.Command{Do: worker.Acquire, Client: "c", Key: "s", As: "s", N: 1}).Result.OK())
			first, second := worker.Start(t), worker.Start(t)
			first.Open("c", dsn, 0)
			second.Open("c", dsn, 0)
			logged := logSize(t, server.LogFile())
			var calls []*worker.Call
			for _, cmd := range []worker.Command{
				{Do: worker.Acquire, Key: "k", As: "k"},
				{Do: worker.Acquire, Key: "s", As: "s", N: 1},
				{Do: worker.Gather, Key: "set", As: "set", Count: 2},
			} {
				for _, p := range []*worker.Process{first, second} { // one waits for the key, one for the gate
					cmd.Client = "c"
					calls = append(calls, p.Begin(cmd))
				}
			}
			time.Sleep(watched)
			for _, key := range []string{"k", "set/1", "s"} {
				require.True(t, holder.Release(key).OK())
			}
			began := time.Now()
			for i := 0; i < len(calls); i += 2 { // the first one of each pair, and when it has released the other
				first := calls[i : i+2]
				p := []*worker.Process{first[0].Process(), first[1].Process()}
				served := 0
				select {
				case <-first[0].Settled():
				case <-first[1].Settled():
					served = 1
				}
				for _, turn := range []int{served, 1 - served} {
					r := first[turn].Wait().Result
					require.True(t, r.OK(), r.Err)
					require.True(t, p[turn].Release(first[turn].As()).OK())
				}
			}
			testkit.Figure(t, "deadlock_timeout %s: served after %v", timeout, time.Since(began))
			requireNothingLogged(t, server, logged)
		})
	}
}
