package semaphore

// Standing is a waiter, or a permit, as a walk finds it. A permit may be for several slots.
type Standing struct {
	Of      any // a pointer, by which it is known again
	Waits   bool
	Name    string
	Permits int
	Token   int64 // of a permit
	Holder  int64 // of a permit
}

// Walk calls visit for all permits, and all that waits but for tries. It is called with the manager's mutex.
func (m *Manager) Walk(visit func(Standing)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.claims {
		for slot, p := range c.owners {
			if slot == p.slots[0] {
				visit(Standing{Of: p, Name: c.line.name, Permits: len(p.slots), Token: p.token, Holder: c.holder})
			}
		}
	}
	for name, l := range m.lines {
		for w := range l.waiters.All() {
			if !w.Value.try {
				visit(Standing{Of: w, Waits: true, Name: name, Permits: w.Value.n})
			}
		}
	}
}

// Forfeit ends a permit as lost, for a cause, and reports whether it was there.
func (m *Manager) Forfeit(name string, holder, token int64, cause error) bool {
	var found *Permit
	m.mu.Lock()
	for c := range m.claims {
		if c.line.name != name || c.holder != holder {
			continue
		}
		for _, p := range c.owners {
			if p.token == token {
				found = p
			}
		}
	}
	m.mu.Unlock()
	if found == nil {
		return false
	}
	found.Forfeit(cause)
	return true
}
