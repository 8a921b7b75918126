package desk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func TestDesk_LossOfTheLink(t *testing.T) {
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
		w.link().Fail(errCut)
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
		w.rounds() // on the next link
		require.Greater(t, w.granted(waiter).Token(), h.Token())
		w.release(waiter.hold)
		w.release(w.granted(asking))
		w.empty()
	})
}

// An answer may be on its way from a reader of the link to the desk while another goroutine fails the link. By
// then the key is asked for on another link.
func TestDesk_AnswerAfterLoss(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(cfg *Config) { cfg.MaxLinks, cfg.PerLink = 2, 1 })
		owner := w.held(key2, exclusive)
		w.release(w.held(advisory.Key{ID: 3}, exclusive))
		w.rounds()
		require.Len(t, w.seats, 2, "the first one is full")

		waiter := w.acquire(key, exclusive, false)
		lost := w.entries[key].seat
		late := lost.link.(*fakeLink)
		ops := late.take()
		draws := w.server.run(t, late.session, ops)
		late.Fail(errCut)
		synctest.Wait()
		require.NotNil(t, w.entries[key].seat)
		require.NotEqual(t, lost, w.entries[key].seat)
		late.handler.Complete(ops, draws)
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

func TestDesk_UntrustedLinkGrantsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		waiter := w.acquire(key, exclusive, false)
		first := w.link()
		first.setExpired() // and no keeper has come to it
		r := w.release(h)
		require.ErrorIs(t, r.err, lockerr.Lost)
		require.ErrorIs(t, r.err, errExpired)
		require.NotEqual(t, first, w.link())
		w.rounds()
		w.release(w.granted(waiter))
		w.empty()
	})
}

func TestDesk_NoLink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		down := errors.New("connection refused")
		w.dialErr = down
		w.link().Fail(errCut)
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

func TestDesk_TurnWithoutLink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.server.try(w.server.newSession(), key, exclusive)
		waiter := w.acquire(key, exclusive, false)
		w.rounds()
		require.True(t, w.stands[key])
		w.mu.Lock()
		w.dialErr = errors.New("connection refused")
		w.mu.Unlock()
		w.link().Fail(errCut)
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

func TestDesk_CloseInEveryPhase(t *testing.T) {
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
			w.seats[0].deal = deal{}
			waiter := w.acquire(key, exclusive, false)
			return waiter, w.release(h)
		},
		"checking": func(w *world) (*call, *call) {
			w.held(key, shared)
			time.Sleep(tenure)
			return w.acquire(key, shared, false), nil
		},
		"standing": func(w *world) (*call, *call) {
			w.server.try(w.server.newSession(), key, exclusive)
			waiter := w.acquire(key, exclusive, false)
			w.rounds()
			return waiter, nil
		},
		"no link": func(w *world) (*call, *call) {
			w.mu.Lock()
			w.dialErr = errCut
			w.mu.Unlock()
			w.link().Fail(errCut)
			return w.acquire(key, exclusive, false), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { closeAfter(t, setup) })
		})
	}
}

// closeAfter closes a desk that has a waiter, and perhaps holders and a release under way.
func closeAfter(t *testing.T, setup func(w *world) (waiter, release *call)) {
	t.Helper()
	w := newWorld(t)
	waiter, release := setup(w)
	var owners []*Hold
	for h := w.entries[key].owners; h != nil; h = h.next {
		owners = append(owners, h)
	}
	var answer <-chan bool
	if w.entries[key].standing {
		answer = w.Turn(key)
	}
	require.NoError(t, w.Close(context.Background()))
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
	require.Empty(t, w.stands)
	require.Empty(t, w.links)
}

func TestDesk_CloseWhileAnswersAreUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		waiter := w.acquire(key, exclusive, false)
		l := w.link()
		ops := l.take()
		draws := w.server.run(t, l.session, ops)
		closed := &call{done: make(chan struct{})}
		go func() {
			defer close(closed.done)
			closed.err = w.Close(context.Background())
		}()
		synctest.Wait()
		l.handler.Complete(ops, draws)
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
		w.link().Fail(errCut)
		require.NoError(t, h.Release(), "what the first said")
		h.OnEnd(func(error) { told++ })
		require.Equal(t, 2, told)
		synctest.Wait()
		h = w.held(key, exclusive)
		w.server.drop(w.link().session) // somebody unlocked it behind our back
		r := w.release(h)
		ops := w.link().take()
		ops[0].OK = false
		w.link().handler.Complete(ops, nil)
		synctest.Wait()
		require.ErrorIs(t, r.err, lockerr.Lost)
		w.empty()
	})
}

// The news that the session has ended lie unread while a key is to be handed over in memory: nobody is granted it by
// that session any longer, and the release does not say that all was well.
func TestDesk_UnreadLoss(t *testing.T) {
	t.Parallel()
	t.Run("Release", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			h := w.held(key, exclusive)
			waiter := w.acquire(key, exclusive, false)
			w.link().leave(errCut)
			r := w.release(h)
			require.True(t, r.ended())
			require.ErrorIs(t, r.err, lockerr.Lost)
			require.ErrorIs(t, r.err, errCut)
			require.False(t, waiter.ended(), "not by the session that has ended")
			w.rounds() // on the next link
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
			w.link().leave(errCut)
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
			w.link().leave(errCut)
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
func TestDesk_ForfeitMeetsRelease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		waiters := []*call{w.acquire(key, exclusive, false), w.acquire(key, exclusive, false), w.acquire(key, exclusive, false)}
		var forfeited chan struct{}
		w.link().onTrusted = func() { // between the release's look and its end
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
