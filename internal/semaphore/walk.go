package semaphore

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
