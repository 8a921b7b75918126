package semaphore

import "maps"

// Standing is a waiter, or a claim on slots, as a walk finds it.
type Standing struct {
	Of      any // a pointer, by which it is known again
	Waits   bool
	Name    string
	Permits int
	Token   int64 // of a claim: the first of its tokens, as the slots have it
	Holder  int64 // of a claim
}

// Walk calls visit for all that is claimed, and all that waits but for tries. It is called with the manager's mutex.
func (m *Manager) Walk(visit func(Standing)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.claims {
		visit(Standing{Of: c, Name: c.line.name, Permits: len(c.owners), Token: c.base, Holder: c.holder})
	}
	for name, l := range m.lines {
		for w := range l.waiters.All() {
			if !w.Value.try {
				visit(Standing{Of: w, Waits: true, Name: name, Permits: w.Value.n})
			}
		}
	}
}

// Forfeit ends permits of a claim as lost, for a cause, and reports whether there were any: those of a holder with the claim's token, or all of its
// semaphore if the token is 0.
func (m *Manager) Forfeit(name string, holder, token int64, cause error) bool {
	permits := map[*Permit]bool{}
	m.mu.Lock()
	for c := range m.claims {
		if c.line.name == name && c.holder == holder && (token == 0 || c.base == token) {
			for p := range maps.Values(c.owners) {
				permits[p] = true
			}
		}
	}
	m.mu.Unlock()
	for p := range permits {
		p.Forfeit(cause)
	}
	return len(permits) > 0
}
