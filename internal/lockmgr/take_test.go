package lockmgr

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func (w *world) takeMany(keys ...advisory.Key) *manyCall {
	c := &manyCall{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.holds, c.errs = w.TakeMany(context.Background(), nameless(keys...), exclusive)
	}()
	synctest.Wait()
	return c
}

// Whoever has the gates comes before those of this process that wait in the queue for one of the keys, and does not take
// anything from those who have one.
func TestManager_TakeMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		all := numbered(3)
		other, gates := w.server.newSession(), w.server.newSession()
		require.True(t, w.server.try(other, all[1], exclusive))
		waits := w.acquire(all[1], exclusive, false)
		w.rounds()
		require.True(t, w.queued[all[1]])
		for _, key := range all {
			require.True(t, w.server.try(gates, gateOf(key), exclusive))
		}

		c := w.takeMany(all...)
		w.rounds()
		<-c.done
		require.ErrorIs(t, c.errs[1], lockerr.NotAcquired, "it is still taken")
		require.NoError(t, c.errs[0])
		w.GiveBackMany(c.holds)
		w.rounds()
		require.False(t, waits.ended())
		require.True(t, w.queued[all[1]], "it goes on waiting")
		w.server.drop(other)

		inProcess := w.acquire(all[2], exclusive, true) // it passes by
		w.rounds()
		c = w.takeMany(all...)
		w.rounds()
		<-c.done
		require.ErrorIs(t, c.errs[2], lockerr.NotAcquired)
		require.NoError(t, c.errs[1], "before the one that waits")
		w.GiveBackMany(c.holds)
		w.release(w.granted(inProcess))
		w.rounds()
		w.server.drop(gates)
		if w.queued[all[1]] {
			w.Turn(all[1])
		}
		w.rounds()
		w.release(w.granted(waits))
		w.empty()
	})
}

// A link that is lost meanwhile costs nothing but time: the tries go to the next one.
func TestManager_TakeManyWhenTheLinkIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		all := numbered(2)
		other := w.server.newSession()
		require.True(t, w.server.try(other, all[0], exclusive))
		waits := w.acquire(all[0], exclusive, false)
		w.rounds()
		w.server.drop(other)
		c := w.takeMany(all...)
		w.anchors[0].Fail(errCut)
		synctest.Wait()
		w.rounds()
		<-c.done
		for i, err := range c.errs {
			require.NoError(t, err)
			require.NoError(t, c.holds[i].Err())
		}
		r := w.releaseMany(c.holds)
		w.rounds()
		<-r.done
		w.release(w.granted(waits))
		w.empty()
	})
}

// A try that is under way when those who gather come is refused, for it would have to wait until they release.
func TestManager_TakeManyBeforeATry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		all := numbered(1)
		w.mu.Lock()
		w.dialErr = errCut
		w.mu.Unlock()
		w.anchor().Fail(errCut)
		synctest.Wait()
		try := w.acquire(all[0], exclusive, true)
		c := w.takeMany(all...)
		w.refused(try, lockerr.NotAcquired)
		w.mu.Lock()
		w.dialErr = nil
		w.mu.Unlock()
		require.NoError(t, w.open())
		w.rounds()
		<-c.done
		require.NoError(t, c.errs[0])
		w.GiveBackMany(c.holds)
		w.empty()
	})
}
