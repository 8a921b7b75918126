package pgbaton

import (
	"cmp"
	"errors"
	"log/slog"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/lockmgr"
	"github.com/pgbaton/pgbaton/internal/registry"
)

// holders are the ids under which the client holds something.
func (c *Client) holders() []int64 {
	known := map[int64]bool{}
	c.locks.Walk(func(s lockmgr.Standing) {
		if !s.Waits {
			known[s.Client] = true
		}
	})
	known[c.sidecar.Known()] = true // whose are the permits
	delete(known, 0)
	ids := make([]int64, 0, len(known))
	for id := range known {
		ids = append(ids, id)
	}
	return ids
}

// giveUp frees what an operator asks for, and reports whether the client had it.
func (c *Client) giveUp(r registry.Request) bool {
	cause := &lockerr.LossError{Reason: lockerr.Freed, Cause: errors.New(r.Said)}
	had := false
	if r.Kind == registry.Permit {
		had = c.semaphores.Forfeit(r.Name, r.Holder, r.Token, cause)
	} else {
		for _, hold := range c.heldFor(r) {
			hold.Forfeit(cause)
			had = true
		}
	}
	if had {
		c.journal.Log(slog.LevelWarn, "an operator freed what this client held: "+cmp.Or(r.Name, keyOf(r.Key, "").String()), cause)
	}
	return had
}

// heldFor are the holds that a request is about: those of its token or, if it has none, one. The row of a lease has the token of the first of the
// grants that came with it; those that followed within the process have others, and are meant by it as well.
func (c *Client) heldFor(r registry.Request) (holds []*lockmgr.Hold) {
	c.locks.Walk(func(s lockmgr.Standing) {
		switch {
		case s.Waits || s.Client != r.Holder || s.Key.Key != r.Key:
		case r.Token == 0 && len(holds) == 0:
			holds = append(holds, s.Hold)
		case r.Token != 0 && (s.Token == r.Token || s.Row == r.Token):
			holds = append(holds, s.Hold)
		}
	})
	return holds
}
