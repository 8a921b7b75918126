package waitline_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/waitline"
)

type (
	line   = waitline.Line[int]
	waiter = waitline.Waiter[int]
)

func newWaiter(value int) *waiter {
	w := &waiter{Value: value}
	w.Init(nil)
	return w
}

func values(l *line) (all []int) {
	for w := range l.All() {
		all = append(all, w.Value)
	}
	return all
}

// The line is compared with a slice, after each of many random steps.
func TestLine_Order(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var l line
		var model []*waiter
		for step := range 100 {
			w := newWaiter(step)
			at := 0
			if len(model) > 0 {
				at = random.IntN(len(model))
			}
			switch event := random.IntN(5); {
			case event == 0:
				l.PushFront(w)
				model = slices.Insert(model, 0, w)
			case event < 3:
				l.Push(w)
				model = append(model, w)
			case len(model) == 0:
			case event == 3:
				require.True(t, l.Abandon(model[at]))
				model = slices.Delete(model, at, at+1)
			default:
				require.True(t, l.Answer(model[at], nil))
				model = slices.Delete(model, at, at+1)
			}
			require.Equal(t, len(model), l.Len(), "seed %d", seed)
			var want []int
			for i, w := range model {
				want = append(want, w.Value)
				require.True(t, w.Waiting())
				if i+1 < len(model) {
					require.Same(t, model[i+1], w.Next())
				}
			}
			require.Equal(t, want, values(&l), "seed %d", seed)
		}
	}
}

func TestLine_EachIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	var l line
	a, b, c := newWaiter(1), newWaiter(2), newWaiter(3)
	require.False(t, l.Answer(a, nil), "it stands in no line")
	require.False(t, l.Abandon(a))
	for _, w := range []*waiter{a, b, c} {
		l.Push(w)
	}
	require.Panics(t, func() { l.Push(a) })
	require.True(t, l.Answer(b, refused))
	require.False(t, l.Answer(b, nil))
	require.False(t, l.Abandon(b))
	require.Equal(t, refused, b.Err(), "the first answer counts")
	require.True(t, l.Abandon(a))
	require.False(t, l.Answer(a, nil))
	require.Equal(t, []int{3}, values(&l))
	require.Panics(t, func() { l.PushFront(a) }, "nobody comes twice")

	for w := range l.All() { // the loop may empty the line
		l.Answer(w, nil)
	}
	require.Nil(t, l.First())
	for range l.All() {
		require.Fail(t, "it is empty")
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	never := func(*waiter) bool { panic("it was answered") }
	keep := func(*waiter) { panic("it was wanted") }
	var l line
	granted, denied := newWaiter(1), newWaiter(2)
	l.Push(granted)
	l.Push(denied)
	l.Answer(granted, nil)
	l.Answer(denied, refused)
	require.False(t, granted.Woken())
	granted.Wake()
	denied.Wake()
	require.True(t, granted.Woken())
	require.True(t, waitline.Within(t.Context(), granted, make(chan bool)))
	require.NoError(t, granted.Wait(t.Context(), never, keep))
	require.Equal(t, refused, denied.Wait(t.Context(), never, keep))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	gone := newWaiter(3)
	l.Push(gone)
	require.True(t, waitline.Within(ended, gone, make(chan bool)))
	require.False(t, waitline.Within(t.Context(), gone, closed()))
	require.ErrorIs(t, gone.Wait(ended, l.Abandon, keep), waitline.ErrEnded)
	require.Zero(t, l.Len())

	for range 100 { // whichever of the two is seen first
		late, back := newWaiter(4), 0
		l.Push(late)
		l.Answer(late, nil)
		late.Wake()
		require.ErrorIs(t, late.Wait(ended, l.Abandon, func(*waiter) { back++ }), waitline.ErrEnded)
		require.Equal(t, 1, back)
	}
}

func closed() chan bool {
	ch := make(chan bool)
	close(ch)
	return ch
}

// One baton goes through a line whose waiters give up at random moments: it is never doubled, and never lost.
func TestWait_AnswerAndEndRace(t *testing.T) {
	t.Parallel()
	const goroutines, rounds = 16, 300
	var (
		mu           sync.Mutex
		l            line
		free         = true
		holders      atomic.Int32
		kept, failed atomic.Int32
	)
	serve := func() { // answers the first in line, if the baton is free
		mu.Lock()
		w := l.First()
		if w == nil || !free {
			mu.Unlock()
			return
		}
		free = false
		l.Answer(w, nil)
		mu.Unlock()
		w.Wake()
	}
	giveBack := func(*waiter) {
		mu.Lock()
		free = true
		mu.Unlock()
		serve()
	}
	abandon := func(w *waiter) bool {
		mu.Lock()
		defer mu.Unlock()
		return l.Abandon(w)
	}
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for range rounds {
				ctx, cancel := context.WithCancel(context.Background())
				if i%2 == 0 {
					time.AfterFunc(rand.N(200*time.Microsecond), cancel)
				}
				w := newWaiter(i)
				mu.Lock()
				l.Push(w)
				mu.Unlock()
				serve()
				err := w.Wait(ctx, abandon, giveBack)
				cancel()
				if err != nil {
					failed.Add(1)
					continue
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the baton", n)
				}
				kept.Add(1)
				holders.Add(-1)
				giveBack(w)
			}
		})
	}
	wg.Wait()
	require.True(t, free, "the baton is lost")
	require.Zero(t, l.Len())
	require.EqualValues(t, goroutines*rounds, kept.Load()+failed.Load())
	require.GreaterOrEqual(t, kept.Load(), int32(goroutines/2*rounds), "those without an end are all served")
}
