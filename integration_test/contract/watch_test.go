package contract

import (
	"context"
	"errors"
	"fmt"
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

// judge checks exclusion and tokens, and returns how many grants there were. What its release says was lost counts for neither.
func (w *watch) judge() (grants int, err error) {
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
		before := writer[h.what]
		switch {
		case total > h.capacity:
			err = errors.Join(err, fmt.Errorf("%q: more was granted at once than there is, and all were told that all was well", h.what))
		case h.token >= 1<<53:
			err = errors.Join(err, fmt.Errorf("%q: a token of %d", h.what, h.token))
		}
		if h.capacity != all {
			continue // permits' tokens are distinct
		}
		if h.weight == all {
			before = newest[h.what]
			writer[h.what] = h.token
		}
		if h.token <= before {
			err = errors.Join(err, fmt.Errorf("%q: token %d after %d", h.what, h.token, before))
		}
		newest[h.what] = max(newest[h.what], h.token)
	}
	return len(w.grants), err
}

// A judge that finds nothing would prove nothing.
func TestWatch(t *testing.T) {
	t.Parallel()
	lost := errors.New("lost")
	type event struct {
		what             string
		weight, capacity int
		token            pgbaton.Token
		leaves           int // the place of an earlier event, that ends here; counted from 1
		err              error
	}
	exclusive := func(token pgbaton.Token) event { return event{what: "k", weight: all, capacity: all, token: token} }
	shared := func(token pgbaton.Token) event { return event{what: "k", weight: 1, capacity: all, token: token} }
	leave := func(place int, err error) event { return event{leaves: place, err: err} }
	for name, c := range map[string]struct {
		events []event
		says   string
	}{
		"one after the other":         {[]event{exclusive(1), leave(1, nil), exclusive(2), leave(3, nil)}, ""},
		"two at once":                 {[]event{exclusive(1), exclusive(2), leave(1, nil), leave(2, nil)}, "more was granted"},
		"two at once, the first lost": {[]event{exclusive(1), exclusive(2), leave(1, lost), leave(2, nil)}, ""},
		"two readers":                 {[]event{shared(1), shared(2), leave(1, nil), leave(2, nil), exclusive(3), leave(5, nil)}, ""},
		"a reader and a writer":       {[]event{shared(1), exclusive(2), leave(1, nil), leave(2, nil)}, "more was granted"},
		"too many permits":            {[]event{{what: "s", weight: 2, capacity: 3}, {what: "s", weight: 2, capacity: 3}, leave(1, nil), leave(2, nil)}, "more was granted"},
		"a token that does not rise":  {[]event{exclusive(2), leave(1, nil), exclusive(2), leave(3, nil)}, "token 2 after 2"},
		"a reader's old token":        {[]event{exclusive(2), leave(1, nil), shared(1), leave(3, nil)}, "token 1 after 2"},
		"readers' tokens need not":    {[]event{shared(2), leave(1, nil), shared(1), leave(3, nil)}, ""},
	} {
		w := newWatch()
		holds := make([]*hold, len(c.events))
		for i, e := range c.events {
			if e.leaves > 0 {
				_ = w.leave(holds[e.leaves-1], func() error { return e.err })
			} else {
				holds[i] = w.enter(e.what, e.weight, e.capacity, e.token)
			}
		}
		_, err := w.judge()
		if c.says == "" {
			require.NoError(t, err, name)
		} else {
			require.ErrorContains(t, err, c.says, name)
		}
	}
}
