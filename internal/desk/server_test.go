package desk

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/link"
)

// server has PostgreSQL's advisory locks, as far as they do not wait, and the token sequence.
type server struct {
	sessions  int
	held      map[slot]int
	last      int64
	tableSize int
	tableUsed int64
	refuse    func(*link.Op) error
}

type slot struct {
	session int
	key     advisory.Key
	mode    advisory.Mode
}

func newServer() *server { return &server{held: map[slot]int{}, tableSize: 100_000} }

func (s *server) newSession() int {
	s.sessions++
	return s.sessions
}

func (s *server) drop(session int) {
	for k := range s.held {
		if k.session == session {
			delete(s.held, k)
		}
	}
}

func (s *server) heldBy(session int) int {
	n := 0
	for k := range s.held {
		if k.session == session {
			n++
		}
	}
	return n
}

// free says whether a session would be granted a key.
func (s *server) free(session int, key advisory.Key, mode advisory.Mode) bool {
	for k := range s.held {
		if k.session != session && k.key == key && (mode == advisory.Exclusive || k.mode == advisory.Exclusive) {
			return false
		}
	}
	return true
}

func (s *server) try(session int, key advisory.Key, mode advisory.Mode) bool {
	if !s.free(session, key, mode) {
		return false
	}
	s.held[slot{session, key, mode}]++
	return true
}

func (s *server) unlock(session int, key advisory.Key, mode advisory.Mode) bool {
	k := slot{session, key, mode}
	if s.held[k] == 0 {
		return false
	}
	if s.held[k]--; s.held[k] == 0 {
		delete(s.held, k)
	}
	return true
}

func gateOf(key advisory.Key) advisory.Key { return advisory.Key{ID: key.Gate()} }

func (s *server) draw() int64 {
	s.last += link.TokensPerDraw
	return s.last
}

// run carries out one round trip: the operations, then the draws.
func (s *server) run(t *testing.T, session int, ops []*link.Op) []int64 {
	t.Helper()
	want := 0
	for _, op := range ops {
		if s.refuse != nil {
			if op.Err = s.refuse(op); op.Err != nil {
				continue
			}
		}
		switch op.Kind {
		case link.Try, link.TryPolite, link.TryAtGate:
			require.Zero(t, s.held[slot{session, op.Key, op.Mode}], "a key is asked for that is held already")
			atGate := op.Kind == link.Try || s.free(session, gateOf(op.Key), advisory.Exclusive)
			op.OK = atGate && s.try(session, op.Key, op.Mode)
			want += max(op.Want, 1)
		case link.Unlock:
			op.OK = s.unlock(session, op.Key, op.Mode)
			require.True(t, op.OK, "a key is unlocked that is not held")
		case link.Downgrade:
			op.OK = s.unlock(session, op.Key, op.Mode)
			require.True(t, op.OK, "a key is downgraded that is not held")
			s.held[slot{session, op.Key, advisory.Shared}]++
		case link.Gate:
			op.OK = s.free(session, gateOf(op.Key), advisory.Exclusive)
		case link.Draw:
			want += op.Want
		case link.Look:
			op.Count = s.tableUsed
		case link.Ping, link.UnlockAll:
		}
	}
	var draws []int64
	for ; want > 0; want -= link.TokensPerDraw {
		draws = append(draws, s.draw())
	}
	return draws
}
