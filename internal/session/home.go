package session

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Home is the one server that all sessions of a client are on.
//
// What it guarantees: of the sessions that have entered and were not ended, all are on one run of one server, in one
// database. A session that reaches another one moves the home there: first every session on the old server is ended,
// its holders told, and only then has the new session entered. So nothing is granted on the new server while the client
// believes in anything on the old one. A session whose dial began before the last move and that is on another
// server than the home is refused: its news is older than the move.
//
// What it does not: know whether the address is right. When an address leads to this server and that in turn, the
// client moves with it, and loses what it holds at each move.
type Home struct {
	entering sync.Mutex // one session enters at a time

	mu       sync.Mutex
	identity string
	moves    int
	members  map[*member]struct{}
	last     *pastLook
}

// pastLook is what a session has found.
type pastLook struct {
	server Server
	role   string
	at     time.Time
}

// lookHolds is for how long other sessions go by what one has found.
const lookHolds = time.Minute

// lastLook returns the last look, nil if it was too long ago.
func (h *Home) lastLook() *pastLook {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil || time.Since(h.last.at) > lookHolds {
		return nil
	}
	return h.last
}

// looked is told what a session has found.
func (h *Home) looked(server Server, role string) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last = &pastLook{server: server, role: role, at: time.Now()}
}

// NewHome makes a home that the first session to enter decides about.
func NewHome() *Home { return &Home{members: map[*member]struct{}{}} }

// member is a session that has entered.
type member struct {
	mu    sync.Mutex
	end   func(cause error)
	cause error // why it was ended
}

// Identity reports which server it is; "" before the first session has entered.
func (h *Home) Identity() string {
	if h == nil {
		return ""
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.identity
}

// visit is to be called before a dial begins; its result goes to enter.
func (h *Home) visit() int {
	if h == nil {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.moves
}

var errMoved = errors.New("the address led to another server while this connection was being opened")

// enter lets a session in that is on the server of an identity; end ends it when the home moves. A session without a home
// is alone.
func (h *Home) enter(identity string, visit int, end func(cause error)) (*member, error) {
	if h == nil {
		return nil, nil
	}
	h.entering.Lock()
	defer h.entering.Unlock()
	h.mu.Lock()
	old, from := h.members, h.identity
	moves := from != identity
	if moves && visit != h.moves {
		h.mu.Unlock()
		return nil, errMoved
	}
	if moves {
		h.identity = identity
		h.moves++
		h.members = map[*member]struct{}{}
	}
	h.mu.Unlock()
	if moves {
		cause := &lockerr.LossError{Reason: lockerr.ServerChanged, Cause: fmt.Errorf(
			"a new connection reached server %s, where the others are on %s", identity, from)}
		for m := range old {
			m.expel(cause)
		}
	}
	m := &member{end: end}
	h.mu.Lock()
	h.members[m] = struct{}{}
	h.mu.Unlock()
	return m, nil
}

func (h *Home) remove(m *member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.members, m)
}

// expel ends the session, and returns when its holders were told.
func (m *member) expel(cause error) {
	m.mu.Lock()
	m.cause = cause
	end := m.end
	m.mu.Unlock()
	end(cause)
}

// onExpel replaces what ends the session.
func (m *member) onExpel(end func(cause error)) {
	m.mu.Lock()
	m.end = end
	cause := m.cause
	m.mu.Unlock()
	if cause != nil {
		end(cause)
	}
}
