package sessionengine

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

var key = advisory.Key{ID: 4711}

// within asks again and again whether something has come about.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, patience, time.Millisecond, what)
}

func TestAnchor_HelpEndsWithItsContext(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	f.do(&engine.Request{Verb: engine.Yield})
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		// The reader of the last answer is there still now and then: then no help is needed, and it returns at once.
		for try := 1; !helpEnds(f, after); try++ {
			require.Less(t, try, 50, "something else ends it")
		}
	}
	require.Empty(t, f.holdings())
}

// helpEnds helps on a silent network with a context that ends after a time, and reports whether that ended the help.
func helpEnds(f *fixture, after time.Duration) bool {
	f.t.Helper()
	f.proxy.Stall(true)
	ctx, cancel := context.WithTimeout(context.Background(), after)
	defer cancel()
	op := &engine.Request{Verb: engine.Acquire, Key: key, Want: 1}
	f.Submit(op)
	f.Help(ctx, func() bool { return f.answered(op) })
	ended := ctx.Err() != nil
	if deadline, _ := ctx.Deadline(); ended {
		testkit.Figure(f.t, "on a silent network a caller's help ended %v after its context", time.Since(deadline))
	}
	f.proxy.Stall(false)
	f.wait(f.t, op)
	require.True(f.t, op.OK, "the answer still reached the handler")
	f.do(&engine.Request{Verb: engine.Release, Key: key})
	return ended
}

func TestAnchor_ManyCallersWithContextsThatEnd(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	f.proxy.Slice(7)
	done := make(chan []*engine.Request)
	for g := range 16 {
		go func() {
			var ops []*engine.Request
			for i := range 60 {
				op := &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: int64(g*1000 + i)}}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i%5)*time.Millisecond/2)
				f.Submit(op)
				f.Help(ctx, func() bool { return f.answered(op) })
				cancel()
				ops = append(ops, op)
			}
			done <- ops
		}()
	}
	for range 16 {
		ops := <-done
		f.wait(t, ops...)
		for _, op := range ops {
			require.True(t, op.OK)
		}
	}
	require.Len(t, f.holdings(), 16*60)
}

func TestAnchor_NoticesTheEndOfItsSession(t *testing.T) {
	t.Parallel()
	for round := range 5 {
		f := open(t, time.Minute)
		f.do(&engine.Request{Verb: engine.Acquire, Key: key})
		if round%2 == 0 { // while a caller hardly ever lets the anchor be idle, or when it stands by
			time.Sleep(10 * time.Millisecond)
		}
		testkit.Value[bool](t, f.admin, "SELECT pg_terminate_backend($1)", int32(f.pid)) //nolint:gosec // a pid
		asked := time.Now()
		require.ErrorContains(t, f.waitLost(t), "terminated by an operator")
		testkit.Figure(t, "the end of a session was noticed after %v", f.lostAt.Sub(asked))
		op := &engine.Request{Verb: engine.Acquire, Key: key}
		f.do(op)
		require.False(t, op.OK)
	}
}

func TestAnchor_StopsTrustingItselfBeforeTheServerDoes(t *testing.T) {
	t.Parallel()
	const ttl = time.Second
	for name, busy := range map[string]bool{"Idle": false, "Busy": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, started := trusted(t, ttl)
			f.proxy.Stall(true)
			op := &engine.Request{Verb: engine.Release, Key: key}
			if busy {
				f.Submit(op)
				f.Help(context.Background(), func() bool { return f.answered(op) })
			}
			require.ErrorContains(t, f.waitLost(t), "lease expired")
			took := f.lostAt.Sub(started)
			require.Greater(t, took, ttl/2)
			require.False(t, f.Trusted(time.Now()))
			testkit.Figure(t, "with TTL %v an anchor on a silent network was lost after %v", ttl, took)
			f.proxy.Stall(false) // what was stalled arrives at last, at nobody
			within(t, "the server frees the lock", func() bool { return len(f.holdings()) == 0 })
		})
	}
}

// trusted opens an anchor, and has it trusted by the answer to what it was asked at the moment that is returned. An anchor that a
// slow machine opens may be lost before it is asked anything.
func trusted(t *testing.T, ttl time.Duration) (f *fixture, asked time.Time) {
	t.Helper()
	for range 20 {
		f, asked = open(t, ttl), time.Now()
		op := &engine.Request{Verb: engine.Acquire, Key: key}
		f.do(op)
		if op.OK && f.Trusted(time.Now()) {
			return f, asked
		}
	}
	t.Fatal("no anchor was trusted, not even at first")
	return nil, asked
}

func TestAnchor_PingKeepsItAlive(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	f := open(t, ttl)
	op := &engine.Request{Verb: engine.Acquire, Key: key}
	f.do(op)
	ended := time.After(3 * ttl / 2)
	for alive := true; alive; {
		select {
		case <-ended:
			alive = false
		case <-f.gone:
			require.NoError(t, f.cause)
		case <-time.After(10 * time.Millisecond):
			require.True(t, f.Trusted(time.Now()))
		}
	}
	require.Len(t, f.holdings(), 1)
}

func TestAnchor_Close(t *testing.T) {
	t.Parallel()
	f := open(t, testkit.Patience)
	for i := range 100 {
		f.Submit(&engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: int64(i)}})
	}
	require.NoError(t, f.close(context.Background()))
	require.Empty(t, f.holdings())
	within(t, "the session ends", func() bool {
		return testkit.Value[int](t, f.admin, "SELECT count(*) FROM pg_stat_activity WHERE pid = $1", int32(f.pid)) == 0 //nolint:gosec // a pid
	})
	require.ErrorContains(t, f.close(context.Background()), "did not confirm")

	stalled := open(t, time.Minute)
	stalled.do(&engine.Request{Verb: engine.Acquire, Key: key})
	stalled.proxy.Stall(true)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	started := time.Now()
	require.ErrorIs(t, stalled.close(ctx), context.DeadlineExceeded)
	testkit.Figure(t, "with a context of 50 ms an anchor on a silent network was closed in %v", time.Since(started))
}

// A connection that breaks at any byte leaves nobody waiting, and nothing locked.
func TestAnchor_CutAtEveryByte(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	proxy, through := testkit.Through(t, f.dsn)
	for offset, whole := 0, false; !whole; offset += testkit.Brief(3, 8) {
		proxy.CutAfter(-1)
		f.connect(through, time.Minute)
		proxy.CutAfter(offset)
		one := &engine.Request{Verb: engine.Acquire, Key: key}
		f.do(one)
		many := []*engine.Request{{Verb: engine.Release, Key: key}, {Verb: engine.Acquire, Key: advisory.Key{ID: 1, Pair: true}}, {Verb: engine.Draw, Want: 40}}
		f.Ask(&stmtLook, (*look)(&f.engine.table), nil)
		f.do(many...)
		last := &engine.Request{Verb: engine.Yield, Key: key}
		f.do(last)
		whole = last.OK
		if !whole {
			require.Error(t, f.waitLost(t))
		}
		require.NotPanics(t, func() { _ = f.close(context.Background()) })
	}
	within(t, "no lock is left", func() bool {
		return testkit.Value[int](t, f.admin, `SELECT count(*) FROM pg_locks
			WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
	})
}

// A silence that is shorter than the trust costs nothing: the ping that was under way is answered after all.
func TestAnchor_OutlivesAShortSilence(t *testing.T) {
	t.Parallel()
	const ttl = 12 * time.Second
	f := open(t, ttl)
	f.do(&engine.Request{Verb: engine.Acquire, Key: key})
	f.proxy.Stall(true)
	late := time.Now().Add(ttl)
	time.Sleep(ttl / 2) // the ping is sent
	require.True(t, f.Trusted(time.Now()))
	require.False(t, f.Trusted(late))
	f.proxy.Stall(false)
	within(t, "more trust", func() bool { return f.Trusted(late) })
	require.False(t, chans.Closed(f.gone))
	require.Len(t, f.holdings(), 1)
}
