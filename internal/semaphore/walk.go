package semaphore

import "maps"

// Waiting is a waiter as a walk finds it.
type Waiting struct {
	Waiter  any // a pointer, by which it is known again
	Name    string
	Permits int
}

// Walk calls visit for all that waits, but for tries. It is called with the manager's mutex.
func (m *Manager) Walk(visit func(Waiting)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, l := range m.lines {
		for w := range l.waiters.All() {
			if !w.Value.try {
				visit(Waiting{Waiter: w, Name: name, Permits: w.Value.n})
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
