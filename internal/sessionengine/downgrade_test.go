package sessionengine

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A downgrade neither waits for a queued exclusive waiter nor lets it in between.
func TestAnchor_Downgrade(t *testing.T) {
	t.Parallel()
	for _, key := range []advisory.Key{{ID: 7}, {ID: 7<<32 | 9, Pair: true}} {
		f := open(t, time.Minute)
		f.do(&engine.Request{Verb: engine.Acquire, Key: key})
		writer := testkit.Connect(t, f.dsn)
		granted := make(chan error, 1)
		go func() {
			_, err := writer.Exec(context.Background(), map[bool]string{
				false: "SELECT pg_advisory_lock(7)", true: "SELECT pg_advisory_lock(7, 9)",
			}[key.Pair])
			granted <- err
		}()
		require.Eventually(t, func() bool {
			return testkit.Value[int](t, f.admin, "SELECT count(*)::int FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1
		}, patience, time.Millisecond)

		down := &engine.Request{Verb: engine.Downgrade, Key: key}
		f.do(down)
		require.NoError(t, down.Err)
		require.True(t, down.OK)
		require.Empty(t, difference(map[holding]bool{{key, advisory.Shared}: true}, f.holdings()))
		require.Empty(t, granted)
		unlock := &engine.Request{Verb: engine.Release, Key: key, Mode: advisory.Shared}
		f.do(unlock)
		require.True(t, unlock.OK)
		require.Empty(t, f.holdings(), "nothing was counted twice")
		require.NoError(t, <-granted)

		// What the server does not know to be held is not waited for, and nothing is left of it.
		again := &engine.Request{Verb: engine.Downgrade, Key: key}
		f.do(again)
		require.False(t, again.OK, "another session holds it")
		unheld := &engine.Request{Verb: engine.Downgrade, Key: advisory.Key{ID: 1234, Pair: key.Pair}}
		f.do(unheld)
		require.False(t, unheld.OK)
		require.Empty(t, f.holdings())
	}
}

// A round trip that fails after a downgrade, or in it, leaves the key shared.
func TestAnchor_DowngradeInAFailedRoundTrip(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	key := advisory.Key{ID: 7}
	f.do(&engine.Request{Verb: engine.Acquire, Key: key})
	testkit.Run(t, f.dsn, `DO $$ BEGIN EXECUTE format('ALTER SEQUENCE pgbaton.token MAXVALUE %s',
		(SELECT last_value FROM pgbaton.token)); END $$`)
	down, try := &engine.Request{Verb: engine.Downgrade, Key: key}, &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: 8}}
	f.do(down, try) // for which there is no token
	require.Error(t, try.Err)
	require.NoError(t, down.Err)
	require.True(t, down.OK)
	require.Empty(t, difference(map[holding]bool{{key, advisory.Shared}: true}, f.holdings()))
	unlock := &engine.Request{Verb: engine.Release, Key: key, Mode: advisory.Shared}
	f.do(unlock)
	require.True(t, unlock.OK)
	require.Empty(t, f.holdings())
}

// The same for one that an operator cancels at any moment.
func TestAnchor_DowngradeCancelledAllTheTime(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Length(2*time.Second))
	defer cancel()
	stopped := make(chan struct{})
	canceller := testkit.Connect(t, f.dsn)
	t.Cleanup(func() { cancel(); <-stopped })
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			_, _ = canceller.Exec(context.Background(), "SELECT pg_cancel_backend($1), pg_sleep(random() / 300)", int32(f.pid)) //nolint:gosec,contextcheck // a pid; cut off in the middle it would close the connection
		}
	}()
	for ctx.Err() == nil {
		var tries []*engine.Request
		for i := range 300 {
			tries = append(tries, &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: int64(i), Pair: i%2 == 0}})
		}
		f.do(tries...)
		var downs, unlocks []*engine.Request
		want := map[holding]bool{}
		for _, op := range tries {
			if op.OK {
				downs = append(downs, &engine.Request{Verb: engine.Downgrade, Key: op.Key})
				unlocks = append(unlocks, &engine.Request{Verb: engine.Release, Key: op.Key, Mode: advisory.Shared})
				want[holding{op.Key, advisory.Shared}] = true
			}
		}
		if len(downs) == 0 {
			continue
		}
		f.do(downs...)
		for _, op := range downs {
			require.True(t, op.OK)
		}
		require.Empty(t, difference(want, f.holdings()))
		f.do(unlocks...)
		require.Empty(t, f.holdings(), "nothing was counted twice")
	}
	<-stopped
}
