package session

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

func TestHome_Move(t *testing.T) {
	t.Parallel()
	h := NewHome()
	require.Empty(t, h.Identity())
	var ended []string
	end := func(name string) func(error) {
		return func(cause error) {
			var loss *lockerr.LossError
			if errors.As(cause, &loss) && loss.Reason == lockerr.ServerChanged {
				ended = append(ended, name)
			}
		}
	}
	one, err := h.enter("A", h.visit(), end("one"))
	require.NoError(t, err)
	two, err := h.enter("A", h.visit(), end("two"))
	require.NoError(t, err)
	two.onExpel(end("two, by its anchor"))
	three, err := h.enter("A", h.visit(), end("three"))
	require.NoError(t, err)
	h.remove(three)
	require.Empty(t, ended)

	early := h.visit() // a dial that will take long
	four, err := h.enter("B", h.visit(), end("four"))
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"one", "two, by its anchor"}, ended, "those that are left on A, and no other")
	require.Equal(t, "B", h.Identity())
	one.onExpel(end("one, late"))
	require.Contains(t, ended, "one, late", "who comes too late is ended at once")
	ended = nil

	_, err = h.enter("A", early, end("from before"))
	require.ErrorIs(t, err, errMoved, "its news is older than the move")
	require.Empty(t, ended)
	require.Equal(t, "B", h.Identity())
	_, err = h.enter("B", early, end("five")) // but where it leads is where the client is
	require.NoError(t, err)

	_, err = h.enter("A", h.visit(), end("six"))
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"four", "five"}, ended)
	h.remove(four) // twice does no harm
}

// Nobody is let in on a new server before all on the old one are ended, however many come at once.
func TestHome_NeverOnTwoServers(t *testing.T) {
	t.Parallel()
	h := NewHome()
	var mu sync.Mutex
	alive := map[string]int{}
	var checks atomic.Int64
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 500 {
				server := fmt.Sprint("server ", (g+i)%3)
				ended := false // guarded by mu
				entered := false
				m, err := h.enter(server, h.visit(), func(error) {
					mu.Lock()
					defer mu.Unlock()
					if entered {
						alive[server]--
					}
					ended = true
				})
				if err != nil {
					continue
				}
				mu.Lock()
				if !ended {
					entered = true
					alive[server]++
					for other, n := range alive {
						if other != server && n != 0 {
							t.Errorf("%d on %s and %d on %s", alive[server], server, n, other)
						}
					}
					checks.Add(1)
				}
				mu.Unlock()
				if i%2 == 0 {
					mu.Lock()
					if !ended {
						ended, entered = true, false
						alive[server]--
					}
					mu.Unlock()
					h.remove(m)
				}
			}
		})
	}
	wg.Wait()
	require.Positive(t, checks.Load())
}

func TestApplicationName(t *testing.T) {
	t.Parallel()
	require.Equal(t, "pgbaton", applicationName(""))
	require.Equal(t, "pgbaton/pod-1:77", applicationName("pod-1:77"))
	long := applicationName("123456789 123456789 123456789 123456789 123456789 123456789")
	require.Len(t, long, maxApplicationName)
	umlauts := applicationName("1ääääääääääääääääääääääääääääääääääääääää")
	require.Len(t, umlauts, maxApplicationName, "8 for the library, 1, and 27 umlauts")
	require.Equal(t, "pgbaton/1ää", umlauts[:len("pgbaton/1ää")])
	require.Len(t, applicationName("ääääääääääääääääääääääääääääääääääääääää"), maxApplicationName-1, "no half character")
}
