package history

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// take and give are the two operations of the model; a loss is a give that nobody asked for.
//
// Law 2 leaves one order only: of two grants of which one at least is exclusive, the one with the smaller token
// came first. So before a take, as many grants must have been taken as have smaller tokens (of readers the
// writers only, since readers come in any order). This says the same as "the token is greater than those
// before", and spares the checker the search.
type take struct {
	g                *Grant
	writers, readers int // how many were taken before; a reader does not care how many readers
}

type give struct{ g *Grant }

// state is a key's.
type state struct {
	writers, readers int // taken so far
	writing          bool
	reading          int
}

// model is a lock with shared and exclusive modes. Refused acquires say nothing: somebody who only waits is
// reason enough to refuse a try. That a grant is given after it was taken, and once, its stamps say.
var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(from, input, _ any) (bool, any) {
		s, _ := from.(state)
		switch op := input.(type) {
		case take:
			return s.take(op)
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
		return fmt.Sprintf("give %s, token %d, lost %v", op.g.Mode, op.g.Token, op.g.Lost)
	},
	DescribeState: func(of any) string { return fmt.Sprintf("%+v", of) },
}

func (s state) take(op take) (bool, any) {
	if s.writing || s.writers != op.writers {
		return false, s
	}
	if op.g.Mode == Shared {
		s.readers++
		s.reading++
		return true, s
	}
	if s.reading > 0 || s.readers != op.readers {
		return false, s
	}
	s.writers++
	s.writing = true
	return true, s
}

func (s state) give(g *Grant) (bool, any) {
	switch {
	case g.Mode == Exclusive && s.writing:
		s.writing = false
		return true, s
	case g.Mode == Shared && s.reading > 0:
		s.reading--
		return true, s
	}
	return false, s
}

// takes are the grants in the order of their tokens.
func takes(grants []*Grant) []take {
	sorted := slices.SortedFunc(slices.Values(grants), func(a, b *Grant) int { return cmp.Compare(a.Token, b.Token) })
	list := make([]take, 0, len(sorted))
	writers, readers := 0, 0
	for i, g := range sorted {
		if i > 0 && sorted[i-1].Token == g.Token { // neither may come before the other, unless both read
			list = append(list, take{g, list[i-1].writers, list[i-1].readers})
		} else {
			list = append(list, take{g, writers, readers})
		}
		if g.Mode == Exclusive {
			writers++
		} else {
			readers++
		}
	}
	return list
}

// operations are a key's history for the model. A grant took effect between call and return. A release took
// effect between its call and return; a loss at any time since the acquire was called, for a grant may be lost
// before it arrives, and what a killed process held was freed at any time after, or never.
func operations(grants []*Grant) []porcupine.Operation {
	ops := make([]porcupine.Operation, 0, 2*len(grants))
	for _, t := range takes(grants) {
		g := t.g
		ops = append(ops, porcupine.Operation{ClientId: g.Process, Input: t, Call: g.Called, Return: g.Got})
		from := g.End
		if g.Lost {
			from = g.Called
		} else if from <= g.Got {
			from = g.Got + 1 // the intervals are closed
		}
		ops = append(ops, porcupine.Operation{ClientId: g.Process, Input: give{g}, Call: from, Return: max(g.Over, from)})
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
		if result == porcupine.Unknown {
			return checked, err
		}
		_, info := porcupine.CheckOperationsVerbose(model, ops, patience)
		path := filepath.Join(dir, fmt.Sprintf("history-%d.html", time.Now().UnixNano()))
		if failed := porcupine.VisualizePath(model, info, path); failed != nil {
			return checked, errors.Join(err, failed)
		}
		return checked, fmt.Errorf("%w; see %s", err, path)
	}
	return checked, nil
}
