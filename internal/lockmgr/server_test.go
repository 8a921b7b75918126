package lockmgr

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// server has PostgreSQL's advisory locks, as far as they do not wait, and the token sequence.
type server struct {
	sessions int
	held     map[slot]int
	last     int64
	refuse   func(*engine.Request) error
}

type slot struct {
	session int
	key     advisory.Key
	mode    advisory.Mode
}

func newServer() *server { return &server{held: map[slot]int{}} }

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

// draw draws tokensPerDraw tokens and returns the first.
func (s *server) draw() int64 {
	s.last += tokensPerDraw
	return s.last
}

const tokensPerDraw = 32

var errRetry = errors.New("of the moment")

// run carries out one round trip: the requests, then the draws. A request that is alone gets more tokens than it wants, one
// that wants very many fewer.
func (s *server) run(t *testing.T, session int, requests []*engine.Request) {
	t.Helper()
	for _, r := range requests {
		if s.refuse != nil {
			if r.Err = s.refuse(r); r.Err != nil {
				r.Retry = errors.Is(r.Err, errRetry)
				continue
			}
		}
		switch r.Verb {
		case engine.Acquire:
			require.Zero(t, s.held[slot{session, r.Key, r.Mode}], "a key is asked for that is held already")
			first := r.Manners == engine.Barge || s.free(session, gateOf(r.Key), advisory.Exclusive)
			r.OK = first && s.try(session, r.Key, r.Mode)
		case engine.Release:
			r.OK = s.unlock(session, r.Key, r.Mode)
			require.True(t, r.OK, "a key is released that is not held")
		case engine.Yield:
			r.OK = s.free(session, gateOf(r.Key), advisory.Exclusive)
		case engine.Draw:
			r.OK = true
		}
	}
	for _, r := range requests {
		if r.Err == nil && r.OK && (r.Verb == engine.Acquire || r.Verb == engine.Draw) {
			count := min(max(r.Want, 1), tokensPerDraw)
			if len(requests) == 1 {
				count = tokensPerDraw
			}
			r.Tokens = engine.TokensFrom(s.draw(), count)
		}
	}
}
