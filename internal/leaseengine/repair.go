package leaseengine

import (
	"fmt"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Repair implements [pipeline.Owner]. The server has undone the transaction, but not what it did to advisory locks. Those of acquires
// are given back, because their rows are not ours. A release is sent again: until then the row is ours, with the lock or without.
func (l *link) Repair(r *pipeline.Repairer[op], failed []op) error {
	if !l.engine.cfg.Both {
		return nil
	}
	wanted := map[advisory.Hold]bool{}
	for _, o := range failed {
		if o.request != nil && o.request.Verb == engine.Acquire {
			wanted[advisory.Hold{Key: o.request.Key, Mode: o.request.Mode}] = true
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	held, err := advisory.Held(r.Query)
	if err != nil {
		return err
	}
	var strays []advisory.Hold
	for h := range wanted {
		if held[h] {
			strays = append(strays, h)
		}
	}
	if len(strays) == 0 {
		return nil
	}
	if err := r.Run([]op{{strays: strays}}); err != nil {
		return fmt.Errorf("undo a failed round trip: %w", err)
	}
	return nil
}

// encodeStrays gives advisory locks back of which the rows are not ours.
func (r *round) encodeStrays(w *pipeline.Writer, strays []advisory.Hold) {
	var keys []int64
	var pairs, shared []bool
	for _, h := range strays {
		keys, pairs, shared = append(keys, h.Key.ID), append(pairs, h.Key.Pair), append(shared, h.Mode == advisory.Shared)
	}
	w.SendText(&stmtStrays, ignored{}, [][]byte{pgtext.Ints(keys), pgtext.Bools(pairs), pgtext.Bools(shared)})
}
