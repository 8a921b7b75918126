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

func TestManager_LossOfTheAnchor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		waiter := w.acquire(key, exclusive, false)
		asking := w.acquire(key2, exclusive, false)
		releasing := w.held(advisory.Key{ID: 3}, exclusive)
		release := w.release(releasing)
		require.False(t, release.ended())
		var told error
		h.OnEnd(func(err error) { told = err })
		w.anchor().Fail(errCut)
		select {
		case <-h.Done():
		default:
			require.Fail(t, "the holder was not told")
		}
		require.ErrorIs(t, told, errCut)
		require.ErrorIs(t, h.Err(), lockerr.Lost)
		require.ErrorIs(t, h.Release(), lockerr.Lost)
		require.ErrorIs(t, h.Release(), errCut)
		synctest.Wait()
		require.True(t, release.ended())
		require.ErrorIs(t, release.err, lockerr.Lost)
		w.rounds() // at the next anchor
		require.Greater(t, w.granted(waiter).Token(), h.Token())
		w.release(waiter.hold)
		w.release(w.granted(asking))
		w.empty()
	})
}

// An answer may be on its way from a reader of the anchor to the manager while another goroutine fails the anchor. By
// then the key is asked for at another anchor.
func TestManager_AnswerAfterLoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world, _ *Config) { w.maxAnchors, w.perAnchor = 2, 1 })
		owner := w.held(key2, exclusive)
		w.release(w.held(advisory.Key{ID: 3}, exclusive))
		w.rounds()
		require.Len(t, w.anchors, 2, "the first one is full")

		waiter := w.acquire(key, exclusive, false)
		late := w.keys[key].anchor.(*fakeAnchor)
		ops := late.take()
		w.server.run(t, late.session, ops)
		late.Fail(errCut)
		synctest.Wait()
		require.NotNil(t, w.keys[key].anchor)
		require.NotSame(t, late, w.keys[key].anchor)
		w.Answer(ops)
		synctest.Wait()
		require.False(t, waiter.ended(), "granted by a session that is gone")
		other := w.server.newSession()
		w.server.try(other, key, exclusive)
		w.rounds()
		require.False(t, waiter.ended())
		waiter.cancel()
		synctest.Wait()
		w.release(owner)
		w.empty()
	})
}

func TestManager_UntrustedAnchorGrantsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		waiter := w.acquire(key, exclusive, false)
		first := w.anchor()
		first.setExpired() // and no keeper has come to it
		r := w.release(h)
		require.ErrorIs(t, r.err, lockerr.Lost)
		require.ErrorIs(t, r.err, errExpired)
		require.NotEqual(t, first, w.anchor())
		w.rounds()
		w.release(w.granted(waiter))
		w.empty()
	})
}

func TestManager_NoAnchor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		down := errors.New("connection refused")
		w.dialErr = down
		w.anchor().Fail(errCut)
		waiter := w.acquire(key, exclusive, false)
		try := w.acquire(key2, exclusive, true)
		time.Sleep(10 * time.Second)
		w.refused(try, lockerr.NotAcquired)
		require.ErrorIs(t, try.err, down)
		require.False(t, waiter.ended())
		ended := w.acquire(key2, exclusive, false)
		ended.cancel()
		synctest.Wait()
		w.refused(ended, context.Canceled)
		require.ErrorIs(t, ended.err, down, "says why it waited")
		w.mu.Lock()
		w.dialErr = nil
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.rounds()
		w.release(w.granted(waiter))
		w.empty()
	})
}

func TestManager_TurnWithoutAnchor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server.try(w.server.newSession(), key, exclusive)
		waiter := w.acquire(key, exclusive, false)
		w.rounds()
		require.True(t, w.queued[key])
		w.mu.Lock()
		w.dialErr = errors.New("connection refused")
		w.mu.Unlock()
		w.anchor().Fail(errCut)
		answer := w.Turn(key)
		synctest.Wait()
		require.Empty(t, answer)
		w.server.drop(2)
		w.mu.Lock()
		w.dialErr = nil
		w.mu.Unlock()
		time.Sleep(10 * time.Second)
		w.rounds()
		require.True(t, <-answer)
		w.release(w.granted(waiter))
		w.empty()
	})
}

func TestManager_CloseInEveryPhase(t *testing.T) {
	t.Parallel()
	for name, setup := range map[string]func(w *world) (waiter, release *call){
		"asking": func(w *world) (*call, *call) { return w.acquire(key, exclusive, false), nil },
		"held": func(w *world) (*call, *call) {
			w.held(key, exclusive)
			return w.acquire(key, exclusive, false), nil
		},
		"releasing": func(w *world) (*call, *call) {
			r := w.release(w.held(key, exclusive))
			return w.acquire(key, exclusive, false), r
		},
		"drawing": func(w *world) (*call, *call) {
			h := w.held(key, exclusive)
			w.keys[key].tokens = engine.Tokens{}
			waiter := w.acquire(key, exclusive, false)
			return waiter, w.release(h)
		},
		"checking": func(w *world) (*call, *call) {
			w.held(key, shared)
			time.Sleep(tenure)
			return w.acquire(key, shared, false), nil
		},
		"waiting": func(w *world) (*call, *call) {
			w.server.try(w.server.newSession(), key, exclusive)
			waiter := w.acquire(key, exclusive, false)
			w.rounds()
			return waiter, nil
		},
		"no anchor": func(w *world) (*call, *call) {
			w.mu.Lock()
			w.dialErr = errCut
			w.mu.Unlock()
			w.anchor().Fail(errCut)
			return w.acquire(key, exclusive, false), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { closeAfter(t, setup) })
		})
	}
}

// closeAfter closes a manager that has a waiter, and perhaps holders and a release under way.
func closeAfter(t *testing.T, setup func(w *world) (waiter, release *call)) {
	t.Helper()
	w := newWorld(t)
	waiter, release := setup(w)
	var owners []*Hold
	for h := w.keys[key].owners; h != nil; h = h.next {
		owners = append(owners, h)
	}
	var answer <-chan bool
	if w.keys[key].queue != unqueued {
		answer = w.Turn(key)
	}
	require.NoError(t, w.Manager.Close(context.Background()))
	synctest.Wait()
	w.refused(waiter, lockerr.Closed)
	if release != nil {
		require.True(t, release.ended())
	}
	for _, h := range owners {
		require.ErrorIs(t, h.Err(), lockerr.Closed)
	}
	if answer != nil {
		require.True(t, <-answer)
	}
	w.refused(w.acquire(key, exclusive, false), lockerr.Closed)
	require.Empty(t, w.queued)
	require.Empty(t, w.anchors)
}

func TestManager_CloseWhileAnswersAreUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		waiter := w.acquire(key, exclusive, false)
		l := w.anchor()
		ops := l.take()
		w.server.run(t, l.session, ops)
		closed := &call{done: make(chan struct{})}
		go func() {
			defer close(closed.done)
			closed.err = w.Manager.Close(context.Background())
		}()
		synctest.Wait()
		w.Answer(ops)
		synctest.Wait()
		require.True(t, closed.ended())
		w.refused(waiter, lockerr.Closed)
		require.Empty(t, w.server.held)
	})
}

func TestHold_EndsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		told := 0
		h.OnEnd(func(error) { told++ })
		a, b := w.release(h), w.release(h)
		require.False(t, b.ended(), "the second call waits for the first")
		w.rounds()
		require.NoError(t, a.err)
		require.NoError(t, b.err)
		require.ErrorIs(t, h.Err(), lockerr.NotHeld)
		w.anchor().Fail(errCut)
		require.NoError(t, h.Release(), "what the first said")
		h.OnEnd(func(error) { told++ })
		require.Equal(t, 2, told)
		synctest.Wait()
		h = w.held(key, exclusive)
		w.server.drop(w.anchor().session) // somebody unlocked it behind our back
		r := w.release(h)
		ops := w.anchor().take()
		ops[0].OK = false
		w.Answer(ops)
		synctest.Wait()
		require.ErrorIs(t, r.err, lockerr.Lost)
		w.empty()
	})
}

// The news that the session has ended lie unread while a key is to be handed over in memory: nobody is granted it by
// that session any longer, and the release does not say that all was well.
func TestManager_UnreadLoss(t *testing.T) {
	t.Parallel()
	t.Run("Release", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			h := w.held(key, exclusive)
			waiter := w.acquire(key, exclusive, false)
			w.anchor().leave(errCut)
			r := w.release(h)
			require.True(t, r.ended())
			require.ErrorIs(t, r.err, lockerr.Lost)
			require.ErrorIs(t, r.err, errCut)
			require.False(t, waiter.ended(), "not by the session that has ended")
			w.rounds() // at the next anchor
			w.release(w.granted(waiter))
			w.empty()
		})
	})
	t.Run("ReleaseMany", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			holds := []*Hold{w.held(key, exclusive), w.held(key2, exclusive)}
			waiter := w.acquire(key2, exclusive, false)
			w.anchor().leave(errCut)
			for _, err := range w.ReleaseMany(holds) {
				require.ErrorIs(t, err, lockerr.Lost)
			}
			require.False(t, waiter.ended())
			w.rounds()
			w.release(w.granted(waiter))
			w.empty()
		})
	})
	t.Run("Join", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			h := w.held(key, shared)
			w.anchor().leave(errCut)
			joining := w.acquire(key, shared, false)
			require.ErrorIs(t, h.Err(), errCut)
			require.False(t, joining.ended())
			w.rounds()
			w.release(w.granted(joining))
			w.empty()
		})
	})
}

// A hold that is taken away while its release is on the way is given up once, by whoever finished it.
func TestManager_ForfeitMeetsRelease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		waiters := []*call{w.acquire(key, exclusive, false), w.acquire(key, exclusive, false), w.acquire(key, exclusive, false)}
		var forfeited chan struct{}
		w.anchor().onTrusted = func() { // between the release's look and its end
			forfeited = make(chan struct{})
			told := make(chan struct{})
			h.OnEnd(func(error) {
				close(told)
				time.Sleep(time.Millisecond) // the release is faster from here on
			})
			go func() {
				defer close(forfeited)
				h.Forfeit(errCut)
			}()
			<-told
		}
		r := w.release(h)
		<-forfeited
		synctest.Wait()
		require.True(t, r.ended())
		require.ErrorIs(t, r.err, lockerr.Lost)
		for _, c := range waiters {
			w.rounds()
			granted := 0
			for _, other := range waiters {
				if other.ended() && other.hold.Err() == nil {
					granted++
				}
			}
			require.Equal(t, 1, granted, "one holder at a time")
			w.release(w.granted(c))
		}
		w.empty()
	})
}

// An engine may lose single keys, as when an operator takes a lease away: the others of the anchor stay.
func TestManager_LossOfAKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		gone, stays := w.held(key, exclusive), w.held(key2, exclusive)
		waiter := w.acquire(key, exclusive, false)
		w.server.unlock(w.anchor().session, key, exclusive)
		w.Lost(w.anchor(), errCut, key, advisory.Key{ID: 9})
		require.ErrorIs(t, gone.Err(), errCut)
		require.ErrorIs(t, w.release(gone).err, lockerr.Lost)
		require.NoError(t, stays.Err())
		w.rounds()
		w.release(w.granted(waiter))
		w.release(stays)
		w.empty()
	})
}
