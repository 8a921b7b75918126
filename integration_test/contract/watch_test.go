package contract

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// all is the weight of an exclusive lock: that of as many shared ones as there can be.
const all = 1 << 20

// watch sees who holds what, of all clients of a test.
type watch struct {
	mu     sync.Mutex
	active map[string][]*hold
	grants []*hold // all, in the order in which they were told
}

// hold is a grant. Its certain time is from when it was told to when its release was called.
type hold struct {
	what     string
	weight   int
	capacity int
	token    pgbaton.Token
	rivals   []*hold // of those that had it at the grant, if with them it is too much
	err      error   // of the release
}

func newWatch() *watch { return &watch{active: map[string][]*hold{}} }

// enter notes a grant.
func (w *watch) enter(what string, weight, capacity int, token pgbaton.Token) *hold {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &hold{what: what, weight: weight, capacity: capacity, token: token}
	total := weight
	for _, other := range w.active[what] {
		total += other.weight
	}
	if total > capacity {
		h.rivals = slices.Clone(w.active[what])
	}
	w.active[what] = append(w.active[what], h)
	w.grants = append(w.grants, h)
	return h
}

// leave notes the end of a grant's certain time, and what its release says.
func (w *watch) leave(h *hold, release func() error) error {
	w.mu.Lock()
	w.active[h.what] = slices.DeleteFunc(w.active[h.what], func(other *hold) bool { return other == h })
	w.mu.Unlock()
	err := release()
	w.mu.Lock()
	defer w.mu.Unlock()
	h.err = err
	return err
}

// lock notes a lock for as long as f runs, and gives it back.
func (w *watch) lock(ctx context.Context, what string, shared bool, lock *pgbaton.Lock, f func()) error {
	weight := all
	if shared {
		weight = 1
	}
	h := w.enter(what, weight, all, lock.Token())
	f()
	return w.leave(h, func() error { return lock.Release(ctx) })
}

// judge checks exclusion and tokens. What its release says was lost counts for neither. It returns how many grants there were.
func (w *watch) judge(t *testing.T) int {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	newest, writer := map[string]pgbaton.Token{}, map[string]pgbaton.Token{}
	for _, h := range w.grants {
		if h.err != nil {
			continue
		}
		total := h.weight
		for _, rival := range h.rivals {
			if rival.err == nil {
				total += rival.weight
			}
		}
		require.LessOrEqual(t, total, h.capacity, "%q: too much was granted at once, and all were told that all was well", h.what)
		require.Less(t, h.token, pgbaton.Token(1<<53))
		if h.capacity != all {
			continue // permits' tokens are distinct
		}
		if h.weight == all {
			require.Greater(t, h.token, newest[h.what], "%q: an exclusive token that does not rise", h.what)
			writer[h.what] = h.token
		} else {
			require.Greater(t, h.token, writer[h.what], "%q: a shared token below that of an exclusive lock before", h.what)
		}
		newest[h.what] = max(newest[h.what], h.token)
	}
	return len(w.grants)
}
