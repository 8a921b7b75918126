package sessionengine

import (
	"fmt"
	"slices"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Repair implements [pipeline.Owner]. A statement that failed keeps the locks that it had already taken. So the server is
// asked what the session holds, and then acquired keys are given back, and releases carried out. Nothing else holds the requests' keys at this anchor.
func (a *anchor) Repair(r *pipeline.Repairer[*engine.Request], failed []*engine.Request) error {
	if !slices.ContainsFunc(failed, changes) {
		return nil
	}
	held, err := advisory.Held(r.Query)
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
func remedies(failed []*engine.Request, held map[advisory.Hold]bool) (repairs []*engine.Request) {
	for _, request := range failed {
		if changes(request) && held[advisory.Hold{Key: request.Key, Mode: request.Mode}] {
			repairs = append(repairs, &engine.Request{Verb: engine.Release, Mode: request.Mode, Key: request.Key})
		}
	}
	return repairs
}
