package lockmgr

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func (w *world) downgrade(ctx context.Context, h *Hold) *call {
	c := &call{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = h.Downgrade(ctx)
	}()
	synctest.Wait()
	return c
}

func TestManager_Downgrade(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		h := w.held(key, exclusive)
		token := h.Token()
		reader := w.acquire(key, shared, false)
		writer := w.acquire(key, exclusive, false)
		late := w.acquire(key, shared, false)
		down, same := w.downgrade(t.Context(), h), w.downgrade(t.Context(), h)
		require.False(t, down.ended())
		w.refused(w.acquire(key, shared, true), lockerr.NotAcquired) // it would pass the writer
		w.rounds()
		require.NoError(t, down.err)
		require.True(t, same.ended())
		require.NoError(t, same.err)
		require.True(t, h.Shared())
		require.NoError(t, h.Err())
		require.Equal(t, token, h.Token())
		joined := w.granted(reader)
		require.Greater(t, joined.Token(), token)
		require.False(t, writer.ended())
		require.False(t, late.ended())
		require.NoError(t, w.downgrade(t.Context(), h).err, "it is shared")
		require.NoError(t, w.downgrade(t.Context(), joined).err)
		require.Equal(t, 1, w.server.heldBy(1))

		w.release(h)
		w.release(joined)
		w.rounds()
		next := w.granted(writer)
		require.Greater(t, next.Token(), joined.Token())
		require.ErrorIs(t, w.downgrade(t.Context(), h).err, lockerr.NotHeld)
		w.release(next)
		w.rounds()
		w.release(w.granted(late))
		w.empty()
	})
}

func TestManager_DowngradeMeetsOtherThings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*testing.T, *world, *Hold){
		"Release": func(t *testing.T, w *world, h *Hold) {
			t.Helper()
			down := w.downgrade(t.Context(), h)
			r := w.release(h)
			require.True(t, r.ended())
			require.NoError(t, r.err)
			require.ErrorIs(t, w.downgrade(t.Context(), h).err, lockerr.NotHeld)
			w.rounds()
			require.True(t, down.ended())
		},
		"EndOfContext": func(t *testing.T, w *world, h *Hold) {
			t.Helper()
			ctx, cancel := context.WithCancel(t.Context())
			down := w.downgrade(ctx, h)
			cancel()
			synctest.Wait()
			w.refused(down, context.Canceled)
			w.refused(w.downgrade(ctx, h), context.Canceled)
			w.rounds()
			require.NoError(t, h.Err())
			require.True(t, h.Shared(), "it went on")
			w.release(h)
		},
		"Loss": func(t *testing.T, w *world, h *Hold) {
			t.Helper()
			down := w.downgrade(t.Context(), h)
			w.anchors[0].Fail(errCut)
			synctest.Wait()
			w.refused(down, lockerr.Lost)
			require.ErrorIs(t, w.downgrade(t.Context(), h).err, lockerr.Lost)
			require.ErrorIs(t, w.release(h).err, lockerr.Lost)
		},
		"NotThere": func(t *testing.T, w *world, h *Hold) {
			t.Helper()
			waiter := w.acquire(key, shared, false)
			down := w.downgrade(t.Context(), h)
			ops := w.anchor().take()
			w.server.drop(1)
			w.Answer(ops)
			synctest.Wait()
			w.refused(down, lockerr.Lost)
			require.ErrorIs(t, h.Err(), lockerr.Lost)
			require.ErrorIs(t, w.release(h).err, lockerr.Lost)
			w.rounds()
			w.release(w.granted(waiter))
		},
		"Refusal": func(t *testing.T, w *world, h *Hold) {
			t.Helper()
			refusal := errors.New("no")
			w.server.refuse = func(op *engine.Request) error {
				if op.Verb == engine.Downgrade {
					return refusal
				}
				return nil
			}
			down := w.downgrade(t.Context(), h)
			w.rounds()
			w.refused(down, refusal)
			require.NoError(t, h.Err())
			require.False(t, h.Shared())
			w.release(h)
		},
		"EndOfTenure": func(t *testing.T, w *world, h *Hold) {
			t.Helper()
			time.Sleep(2 * tenure)
			other := w.server.newSession()
			w.server.try(other, gateOf(key), exclusive)
			reader := w.acquire(key, shared, false)
			w.downgrade(t.Context(), h)
			w.rounds()
			require.False(t, reader.ended(), "another process is first")
			require.True(t, w.queued[key])
			w.release(h)
			w.rounds()
			w.server.drop(other)
			w.Turn(key)
			w.rounds()
			w.release(w.granted(reader))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				test(t, w, w.held(key, exclusive))
				w.empty()
			})
		})
	}
}
