package lockmgr

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// manyCall is a TryMany or a ReleaseMany under way.
type manyCall struct {
	done  chan struct{}
	keys  []advisory.Key
	mode  advisory.Mode
	holds []*Hold
	errs  []error
}

// nameless are keys that people have no name for.
func nameless(keys ...advisory.Key) (all []advisory.Named) {
	for _, key := range keys {
		all = append(all, advisory.Named{Key: key})
	}
	return all
}

func (w *world) tryMany(ctx context.Context, mode advisory.Mode, keys ...advisory.Key) *manyCall {
	c := &manyCall{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.holds, c.errs = w.TryMany(ctx, nameless(keys...), mode)
	}()
	synctest.Wait()
	return c
}

func (w *world) releaseMany(holds []*Hold) *manyCall {
	c := &manyCall{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.errs = w.ReleaseMany(holds)
	}()
	synctest.Wait()
	return c
}

func numbered(n int) []advisory.Key {
	keys := make([]advisory.Key, n)
	for i := range keys {
		keys[i] = advisory.Key{ID: int64(i)}
	}
	return keys
}

func TestManager_TryMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *Config) { w.maxAnchors, w.perAnchor = 2, 1 })
		w.held(advisory.Key{ID: 98}, exclusive)
		w.held(advisory.Key{ID: 99}, exclusive) // and with it a second link
		w.rounds()
		require.Len(t, w.anchors, 2)
		other := w.server.newSession()
		w.server.try(other, advisory.Key{ID: 3}, shared)
		inProcess := w.held(advisory.Key{ID: 4}, exclusive)

		keys := numbered(8)
		c := w.tryMany(t.Context(), exclusive, append(keys, keys[0])...)
		for _, l := range w.anchors {
			l.complete(l.take()) // one round trip each
		}
		<-c.done
		for i, err := range c.errs {
			if i == 3 || i == 4 || i == 8 {
				require.ErrorIs(t, err, lockerr.NotAcquired, "key %d", i)
				require.Nil(t, c.holds[i])
				continue
			}
			require.NoError(t, err)
			require.NoError(t, c.holds[i].Err())
			require.Positive(t, c.holds[i].Token())
		}
		c.holds[0].GiveBack()
		r := w.releaseMany(c.holds)
		for _, l := range w.anchors {
			l.complete(l.take())
		}
		<-r.done
		for i, err := range r.errs {
			if i == 0 {
				require.ErrorIs(t, err, lockerr.NotHeld)
				continue
			}
			require.NoError(t, err)
		}
		require.NoError(t, c.holds[1].Release(), "the second time")
		w.release(inProcess)
		w.release(w.keys[advisory.Key{ID: 98}].owners)
		w.release(w.keys[advisory.Key{ID: 99}].owners)
		w.empty()
	})
}

func TestManager_TryManyEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		c := w.tryMany(ctx, shared, numbered(5)...)
		cancel()
		synctest.Wait()
		<-c.done
		for i, err := range c.errs {
			require.ErrorIs(t, err, lockerr.NotAcquired)
			require.ErrorIs(t, err, context.Canceled)
			require.Nil(t, c.holds[i])
		}
		w.rounds()
		require.Zero(t, w.server.heldBy(1), "what was granted to nobody goes back")
		c = w.tryMany(ctx, shared, numbered(5)...)
		<-c.done
		require.ErrorIs(t, c.errs[4], context.Canceled)
		w.empty()
	})
}

// Answers that come just before the context ends are nobody's: the caller has stopped waiting.
func TestManager_AnsweredAsTheContextEnds(t *testing.T) {
	t.Parallel()
	for range 20 { // of two things that are there the waiter sees either one first
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			ended := func() context.Context { // once there are answers
				ctx, cancel := context.WithCancel(t.Context())
				w.anchor().onHelp = func() {
					w.anchor().complete(w.anchor().take())
					cancel()
				}
				return ctx
			}
			holds, errs := w.TryMany(ended(), nameless(key, key2), exclusive)
			require.Equal(t, []*Hold{nil, nil}, holds)
			for _, err := range errs {
				require.ErrorIs(t, err, lockerr.NotAcquired)
				require.ErrorIs(t, err, context.Canceled)
			}
			w.rounds()
			require.Zero(t, w.server.heldBy(1), "given back")
			_, err := w.Acquire(ended(), advisory.Named{Key: key}, exclusive, false)
			require.ErrorIs(t, err, context.Canceled)
			w.empty()
		})
	}
}

func TestManager_TryManyWhenTheLinkIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.tryMany(t.Context(), exclusive, numbered(3)...)
		w.anchors[0].Fail(errCut)
		synctest.Wait()
		w.rounds() // on the next link
		<-c.done
		for i, err := range c.errs {
			require.NoError(t, err)
			require.NoError(t, c.holds[i].Err())
		}
		w.anchors[0].Fail(errCut)
		r := w.releaseMany(c.holds)
		<-r.done
		for _, err := range r.errs {
			require.ErrorIs(t, err, lockerr.Lost)
		}
		synctest.Wait()
		w.empty()
	})
}
