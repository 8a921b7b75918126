package election

import "github.com/pgbaton/pgbaton/internal/advisory"

// Candidacy is a candidate that waits to lead, as a walk finds it.
type Candidacy struct {
	Candidate any // a pointer, by which it is known again
	Key       advisory.Named
}

// Walk calls visit for all candidates that wait. It is called with the manager's mutex.
func (m *Manager) Walk(visit func(Candidacy)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.contests {
		for w := range p.waiters.All() {
			visit(Candidacy{Candidate: w, Key: p.key})
		}
	}
}
