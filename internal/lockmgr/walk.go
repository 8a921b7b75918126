package lockmgr

import (
	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
)

// Standing is a hold, or a waiter, as a walk finds it.
type Standing struct {
	Hold   *Hold // of the waiter: the one that it gets if it is granted
	Waits  bool
	Key    advisory.Named
	Mode   advisory.Mode
	Token  int64 // 0 of a waiter
	Row    int64 // the token that the row of the grant has, where the engine has rows; see [engine.Recorded]
	Client int64 // by which the server knows of it; see [engine.Identified]
}

// Walk calls visit for all that is held, and all that waits but for tries and for what is watched elsewhere. It is called with the
// manager's mutex.
func (m *Manager) Walk(visit func(Standing)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	waiting := m.Client()
	var last engine.Anchor
	var client int64
	for key, e := range m.keys {
		named := func(h *Hold) advisory.Named { return advisory.Named{Key: key, Name: e.name, Use: h.use} }
		for h := e.owners; h != nil; h = h.next {
			if h.anchor != last {
				last, client = h.anchor, identity(h.anchor)
			}
			s := Standing{Hold: h, Key: named(h), Mode: h.mode, Token: h.token, Client: client}
			if r, ok := h.anchor.(engine.Recorded); ok {
				s.Row = r.Recorded(key)
			}
			visit(s)
		}
		for w := range e.waiters.All() {
			if !w.Value.try && !w.Value.watched {
				visit(Standing{Hold: &w.Value.hold, Waits: true, Key: named(&w.Value.hold), Mode: w.Value.hold.mode, Client: waiting})
			}
		}
	}
}

// Client is the number by which the server knows the client; 0 if it does not.
func (m *Manager) Client() int64 { return identity(m.engine) }

// Listen has the engine's sessions hear notifications.
func (m *Manager) Listen() {
	if l, ok := m.engine.(engine.Listener); ok {
		l.Listen()
	}
}

func identity(of any) int64 {
	if known, ok := of.(engine.Identified); ok {
		return known.Client()
	}
	return 0
}

// Watched has walks pass by a waiter, which is published as one that is watched for deadlocks.
func (r Pending) Watched() {
	r.manager.mu.Lock()
	defer r.manager.mu.Unlock()
	r.w.Value.watched = true
}
