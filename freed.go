package pgbaton

import (
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
		c.journal.Log(slog.LevelWarn, "an operator freed what this client held: "+r.Name, cause)
	}
	return had
}

// heldFor are the holds that a request is about.
func (c *Client) heldFor(r registry.Request) (holds []*lockmgr.Hold) {
	c.locks.Walk(func(s lockmgr.Standing) {
		if !s.Waits && s.Client == r.Holder && s.Key.Key == r.Key && c.meant(s.Token, r.Token) {
			holds = append(holds, s.Hold)
		}
	})
	return holds
}

// meant reports whether a grant is the one that a request names by its token: by none, the newest that is there. The row of a lease has the first of the
// tokens that came with it, and grants that were handed over within the process have later ones.
func (c *Client) meant(token, named int64) bool {
	const dealt = 64
	return named == 0 || token == named || (c.sessions == nil && token > named && token < named+dealt)
}
