package sessionengine

import (
	"fmt"
	"slices"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// sqlMine lists this session's advisory locks, each with its key as the requests know it.
const sqlMine = `SELECT (classid::int8 << 32) | objid::int8, objsubid = 2, mode = 'ShareLock'
  FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()`

// holding is one row of sqlMine.
type holding struct {
	key  advisory.Key
	mode advisory.Mode
}

// Repair implements [pipeline.Owner]. A statement that failed keeps the locks that it had already taken. So the server is
// asked what the session holds, and then acquired keys are given back, and releases carried out. Nothing else holds the requests' keys at this anchor.
func (a *anchor) Repair(r *pipeline.Repairer[*engine.Request], failed []*engine.Request) error {
	if !slices.ContainsFunc(failed, changes) {
		return nil
	}
	held, err := mine(r)
	if err != nil {
		return err
	}
	repairs := remedies(failed, held)
	if len(repairs) == 0 {
		return nil
	}
	if err := r.Run(repairs); err != nil {
		return fmt.Errorf("undo a failed round trip: %w", err)
	}
	return nil
}

// changes reports whether a request changes what the session holds.
func changes(request *engine.Request) bool {
	return request.Verb == engine.Acquire || request.Verb == engine.Release
}

// remedies returns the requests after which the session holds what it should after failed ones, when it holds so much
// now.
func remedies(failed []*engine.Request, held map[holding]bool) (repairs []*engine.Request) {
	for _, request := range failed {
		if changes(request) && held[holding{request.Key, request.Mode}] {
			repairs = append(repairs, &engine.Request{Verb: engine.Release, Mode: request.Mode, Key: request.Key})
		}
	}
	return repairs
}

// mine asks the server which advisory locks the session holds.
func mine(r *pipeline.Repairer[*engine.Request]) (map[holding]bool, error) {
	rows, err := r.Query(sqlMine)
	if err != nil {
		return nil, fmt.Errorf("ask which locks are held: %w", err)
	}
	held := map[holding]bool{}
	for _, row := range rows {
		var h holding
		if len(row) != 3 {
			return nil, pipeline.ErrProtocol
		}
		if _, err := fmt.Sscan(string(row[0]), &h.key.ID); err != nil {
			return nil, pipeline.ErrProtocol
		}
		h.key.Pair = string(row[1]) == "t"
		if string(row[2]) == "t" {
			h.mode = advisory.Shared
		}
		held[h] = true
	}
	return held, nil
}
