package history

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// take and give are the two operations of the model; a loss is a give that nobody asked for.
type take struct{ g *Grant }

type give struct{ g *Grant }

// state is a key's: who holds it, and the greatest tokens that were handed out. It is a value.
type state struct {
	writer  *Grant
	readers string // the set of shared holders, as their sorted numbers
	count   int
	token   int64 // greatest of all
	fence   int64 // greatest exclusive one
}

// model is a lock with shared and exclusive modes. Refused acquires say nothing: somebody who only waits is
// reason enough to refuse a try.
var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(from, input, _ any) (bool, any) {
		s := from.(state) //nolint:errcheck // the model's own
		switch op := input.(type) {
		case take:
			return s.take(op.g)
		case give:
			return s.give(op.g)
		}
		return false, s
	},
	DescribeOperation: func(input, _ any) string {
		if op, ok := input.(take); ok {
			return fmt.Sprintf("take %s, token %d", op.g.Mode, op.g.Token)
		}
		op, _ := input.(give)
		return fmt.Sprintf("give %s, lost %v", op.g.Mode, op.g.Lost)
	},
	DescribeState: func(of any) string {
		s := of.(state) //nolint:errcheck // the model's own
		return fmt.Sprintf("writer %v, %d readers, token %d, fence %d", s.writer != nil, s.count, s.token, s.fence)
	},
}

func (s state) take(g *Grant) (bool, any) {
	if g.Mode == Shared {
		if s.writer != nil || g.Token <= s.fence {
			return false, s
		}
		s.count++
		s.token = max(s.token, g.Token)
		s.readers = toggle(s.readers, g)
		return true, s
	}
	if s.writer != nil || s.count > 0 || g.Token <= s.token {
		return false, s
	}
	s.writer, s.token, s.fence = g, g.Token, g.Token
	return true, s
}

func (s state) give(g *Grant) (bool, any) {
	switch {
	case g.Mode == Exclusive && s.writer == g:
		s.writer = nil
		return true, s
	case g.Mode == Shared && contains(s.readers, g):
		s.readers = toggle(s.readers, g)
		s.count--
		return true, s
	}
	return false, s
}

// A set of grants as a string can be compared with ==, which porcupine needs of states.
func member(g *Grant) string { return fmt.Sprintf("%d.%d;", g.Process, g.Op) }

func contains(set string, g *Grant) bool { return slices.Contains(split(set), member(g)) }

func toggle(set string, g *Grant) string {
	members := split(set)
	if i, found := slices.BinarySearch(members, member(g)); found {
		members = slices.Delete(members, i, i+1)
	} else {
		members = slices.Insert(members, i, member(g))
	}
	joined := ""
	for _, m := range members {
		joined += m
	}
	return joined
}

func split(set string) []string {
	var members []string
	start := 0
	for i := range len(set) {
		if set[i] == ';' {
			members = append(members, set[start:i+1])
			start = i + 1
		}
	}
	return members
}

// operations are a key's history for the model. A grant took effect between call and return. A release took
// effect between its call and return; a loss at any time since the grant, and what a killed process held was
// freed at any time after, or never.
func operations(grants []*Grant) []porcupine.Operation {
	ops := make([]porcupine.Operation, 0, 2*len(grants))
	for _, g := range grants {
		ops = append(ops, porcupine.Operation{ClientId: g.Process, Input: take{g}, Call: g.Called, Return: g.Got})
		from := g.End
		if g.Lost {
			from = g.Got
		}
		ops = append(ops, porcupine.Operation{ClientId: g.Process, Input: give{g}, Call: from, Return: g.Over})
	}
	return ops
}

// Check checks a history, key by key, against the model. On failure the visualisation of the key's history is
// written into dir. It returns how many operations were checked. A check that takes too long is a failure.
func Check(grants []*Grant, dir string) (int, error) {
	const patience = 30 * time.Second
	checked := 0
	keys := byKey(grants)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		ops := operations(keys[key])
		checked += len(ops)
		result := porcupine.CheckOperationsTimeout(model, ops, patience)
		if result == porcupine.Ok {
			continue
		}
		err := fmt.Errorf("history of key %q, %d operations: %s", key, len(ops), result)
		_, info := porcupine.CheckOperationsVerbose(model, ops, patience)
		path := filepath.Join(dir, fmt.Sprintf("history-%d.html", time.Now().UnixNano()))
		if failed := porcupine.VisualizePath(model, info, path); failed != nil {
			return checked, errors.Join(err, failed)
		}
		return checked, fmt.Errorf("%w; see %s", err, path)
	}
	return checked, nil
}
