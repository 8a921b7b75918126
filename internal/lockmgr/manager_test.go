package lockmgr

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

const (
	exclusive = advisory.Exclusive
	shared    = advisory.Shared
)

var (
	key  = advisory.Key{ID: 1}
	key2 = advisory.Key{ID: 2, Pair: true}
)

func TestManager_HandsOverInOrderOfArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first := w.held(key, exclusive)
		calls := make([]*call, 20)
		for i := range calls {
			calls[i] = w.acquire(key, exclusive, false)
		}
		require.Empty(t, w.anchor().queue, "waiters of this process do not reach the server")
		token, hold := first.Token(), first
		for i, c := range calls {
			require.False(t, c.ended())
			r := w.release(hold)
			w.rounds() // tokens, when they have run out
			require.True(t, r.ended())
			require.NoError(t, r.err)
			hold = w.granted(c)
			require.Greater(t, hold.Token(), token, "grant %d", i)
			token = hold.Token()
		}
		w.release(hold)
		w.empty()
	})
}

func TestManager_SharedJoin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.held(key, shared), w.held(key, shared)
		require.Equal(t, 1, w.server.heldBy(1))
		writer := w.acquire(key, exclusive, false)
		reader := w.acquire(key, shared, false)
		tryReader := w.acquire(key, shared, true)
		w.refused(tryReader, lockerr.NotAcquired)
		w.rounds()
		require.False(t, reader.ended(), "a reader does not pass a writer")
		require.NoError(t, w.release(a).err)
		w.rounds()
		require.False(t, writer.ended())
		w.release(b)
		w.rounds()
		h := w.granted(writer)
		require.Greater(t, h.Token(), b.Token())
		require.False(t, reader.ended())
		w.release(h)
		w.rounds()
		r := w.granted(reader)
		require.Greater(t, r.Token(), h.Token())
		w.release(r)
		w.empty()
	})
}

func TestManager_TenureEndsAfterPasses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hold := w.held(key, exclusive)
		var calls []*call
		for range maxPasses + 2 {
			calls = append(calls, w.acquire(key, exclusive, false))
		}
		var asked []engine.Request
		w.server.refuse = func(op *engine.Request) error { asked = append(asked, *op); return nil }
		for i, c := range calls[:maxPasses+1] {
			w.release(hold)
			w.rounds()
			hold = w.granted(c)
			gaveBack := len(asked) >= 2 && asked[len(asked)-1].Manners == engine.Behind && asked[len(asked)-2].Verb == engine.Release
			require.Equal(t, i == maxPasses, gaveBack, "hand-over %d", i+1)
		}
		calls[maxPasses+1].cancel()
		w.release(hold)
		w.empty()
	})
}

func TestManager_TenureEndsInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := w.server.newSession()
		hold := w.held(key, exclusive)
		next := w.acquire(key, exclusive, false)
		time.Sleep(tenure)
		require.True(t, w.server.try(other, gateOf(key), exclusive), "another process stands at the gate")
		r := w.release(hold)
		w.rounds()
		require.True(t, r.ended())
		require.NoError(t, r.err)
		require.False(t, next.ended())
		require.True(t, w.queued[key], "it queues behind the other process")
		mode, until, ok := w.Need(key)
		require.True(t, ok)
		require.Equal(t, exclusive, mode)
		require.True(t, until.IsZero())

		require.True(t, w.server.try(other, key, exclusive))
		require.True(t, w.server.unlock(other, gateOf(key), exclusive))
		answer := w.Turn(key)
		w.rounds()
		require.False(t, <-answer, "a passer-by was faster")
		require.True(t, w.queued[key])
		w.server.drop(other)
		answer = w.Turn(key)
		w.rounds()
		require.True(t, <-answer)
		w.release(w.granted(next))
		w.empty()
	})
}

func TestManager_ReadersLookAtTheGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := w.server.newSession()
		first := w.held(key, shared)
		time.Sleep(tenure)
		second := w.held(key, shared) // nobody stands there
		time.Sleep(tenure)
		w.server.try(other, gateOf(key), exclusive)
		try := w.acquire(key, shared, true)
		third := w.acquire(key, shared, false)
		w.rounds()
		w.refused(try, lockerr.NotAcquired)
		require.False(t, third.ended())
		require.True(t, w.queued[key])
		third.cancel()
		synctest.Wait()
		w.refused(third, context.Canceled)
		require.False(t, w.queued[key], "nobody waits any longer, although the key is held")
		third = w.acquire(key, shared, false)
		w.rounds()
		require.True(t, w.queued[key])
		w.release(first)
		w.release(second)
		w.rounds()
		require.Zero(t, w.server.heldBy(1), "readers gave way")
		w.server.drop(other)
		answer := w.Turn(key)
		w.rounds()
		require.True(t, <-answer)
		w.release(w.granted(third))
		w.empty()
	})
}

func TestManager_TryIsNeverLeftHanging(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := w.server.newSession()
		w.server.try(other, key, exclusive)
		try := w.acquire(key, exclusive, true)
		waiter := w.acquire(key, exclusive, false)
		w.rounds()
		w.refused(try, lockerr.NotAcquired)
		require.False(t, waiter.ended())
		w.refused(w.acquire(key, exclusive, true), lockerr.NotAcquired)
		w.server.drop(other)
		w.Sweep([]advisory.Key{key, key2})
		w.rounds()
		hold := w.granted(waiter)
		w.refused(w.acquire(key, shared, true), lockerr.NotAcquired)
		w.release(hold)
		try = w.acquire(key, exclusive, true)
		require.False(t, try.ended(), "the unlock is under way")
		w.rounds()
		w.release(w.granted(try))
		w.empty()
	})
}

// Whatever is under way when a waiter leaves, the key goes to the next in line or back.
func TestManager_CancelInEveryPhase(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		setup func(w *world) // leaves the key in the state
		state state
	}{
		{"asking", func(*world) {}, asking},
		{"held", func(w *world) { w.held(key, exclusive) }, held},
		{"drawing", func(w *world) {
			h := w.held(key, exclusive)
			w.keys[key].tokens = engine.Tokens{}
			waiter := w.acquire(key, exclusive, false)
			w.release(h)
			waiter.cancel()
		}, drawing},
		{"releasing", func(w *world) { w.release(w.held(key, exclusive)) }, releasing},
		{"checking", func(w *world) {
			w.held(key, shared)
			time.Sleep(tenure)
			w.acquire(key, shared, false).cancel()
		}, checking},
		{"idle", func(w *world) {
			other := w.server.newSession()
			w.server.try(other, key, exclusive)
			c := w.acquire(key, exclusive, false)
			w.rounds()
			c.cancel()
			synctest.Wait()
		}, idle},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { cancelIn(t, test.state, test.setup) })
		})
	}
}

// cancelIn lets a waiter leave in a state, with another behind it.
func cancelIn(t *testing.T, in state, setup func(w *world)) {
	t.Helper()
	w := newWorld(t)
	setup(w)
	c, next := w.acquire(key, exclusive, false), w.acquire(key, exclusive, false)
	if in == idle {
		w.rounds()
	}
	require.Equal(t, in, w.keys[key].state)
	c.cancel()
	synctest.Wait()
	w.refused(c, lockerr.NotAcquired)
	require.ErrorIs(t, c.err, context.Canceled)
	w.rounds()
	for e := w.keys[key]; e != nil && e.owners != nil; e = w.keys[key] {
		w.release(e.owners) // also of those that setup left
		w.rounds()
		if next.ended() {
			break
		}
	}
	if in == idle {
		w.server.drop(2)
		w.Sweep([]advisory.Key{key})
		w.rounds()
	}
	w.granted(next)
	next.hold.GiveBack()
	w.empty()
}

func TestManager_GrantForNobodyGoesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.acquire(key, exclusive, false)
		c.cancel()
		synctest.Wait()
		w.refused(c, context.Canceled)
		w.round()
		require.Equal(t, 1, w.server.heldBy(1))
		w.round()
		require.Zero(t, w.server.heldBy(1))
		w.empty()
	})
}

func TestManager_ServerRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		failure, cancels := errors.New("no"), 0
		w.server.refuse = func(op *engine.Request) error {
			if op.Verb != engine.Acquire {
				return nil
			}
			return failure
		}
		a, b := w.acquire(key, exclusive, false), w.acquire(key, shared, true)
		w.rounds()
		w.refused(a, failure)
		w.refused(b, lockerr.NotAcquired) // it would have passed a waiter
		w.server.refuse = func(*engine.Request) error {
			if cancels++; cancels <= 3 {
				return errRetry
			}
			return nil
		}
		h := w.held(key, exclusive)
		w.keys[key].tokens, cancels = engine.Tokens{}, 0
		c := w.acquire(key, exclusive, false)
		w.release(h)
		w.rounds()
		h = w.granted(c)
		w.server.refuse = nil
		w.release(h)
		w.empty()
	})
}

func TestManager_MaxHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, cfg *Config) { cfg.MaxHeld = 2 })
		other := w.server.newSession()
		w.server.try(other, key2, exclusive)
		waiting := w.acquire(key2, exclusive, false)
		w.rounds()
		a, b := w.held(key, exclusive), w.held(advisory.Key{ID: 7}, exclusive)
		w.refused(w.acquire(advisory.Key{ID: 8}, exclusive, false), lockerr.TooManyLocks)
		again := w.acquire(key, exclusive, false)
		w.Sweep([]advisory.Key{key2})
		w.rounds()
		require.False(t, waiting.ended(), "who waits for a key that others hold goes on waiting")
		w.release(a)
		w.rounds()
		w.release(w.granted(again))
		w.release(b)
		w.rounds()
		w.server.drop(other)
		w.Sweep([]advisory.Key{key2})
		w.rounds()
		w.release(w.granted(waiting))
		w.empty()
	})
}

// What the engine refuses to be asked for is refused to those who wait, until it no longer does.
func TestManager_EngineRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(_ *world, cfg *Config) { cfg.MaxHeld = 0 })
		h := w.held(key, exclusive)
		w.pickErr = lockerr.TooManyLocks
		w.refused(w.acquire(key2, exclusive, false), lockerr.TooManyLocks)
		w.refused(w.acquire(key2, exclusive, true), lockerr.TooManyLocks)
		again := w.acquire(key, exclusive, false)
		w.release(h)
		w.release(w.granted(again))
		w.pickErr = nil
		w.release(w.held(key2, exclusive))
		w.rounds()
		w.capacity = 1
		h = w.held(key, exclusive)
		w.refused(w.acquire(key2, exclusive, false), lockerr.TooManyLocks)
		w.release(h)
		w.empty()
	})
}
