package emulation

import (
	"slices"
	"strings"
)

// request passes a message of the client's on, or what takes its place.
func (c *connection) request(kind byte, message []byte) error {
	content := body(message)
	switch kind {
	case 'p', 'X', 'd', 'c', 'f': // a password, the end, and the data of a COPY belong to no unit or to the one under way
		return c.send(message)
	case 'Q':
		sql, _ := text(content)
		return c.query(sql)
	case 'F':
		c.begin()
		return c.end(message)
	case 'S':
		return c.sync(message)
	}
	u := c.begin()
	switch kind {
	case 'P':
		name, rest := text(content)
		c.statements[name], _ = text(rest)
	case 'B':
		portal, rest := text(content)
		name, _ := text(rest)
		c.portals[portal] = c.statements[name]
	case 'E':
		portal, _ := text(content)
		return c.execute(u, c.portals[portal], message)
	}
	return c.send(message)
}

func (c *connection) send(message []byte) error {
	_, err := c.server.Write(message)
	return err
}

// begin returns the unit under way, or a new one.
func (c *connection) begin() *unit {
	if c.unit == nil {
		c.unit = c.add(&unit{})
	}
	return c.unit
}

func (c *connection) add(u *unit) *unit {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.units = append(c.units, u)
	return u
}

// end sends the last message of the unit under way, and what hides behind it.
func (c *connection) end(last []byte) error {
	u := c.unit
	c.unit = nil
	c.mu.Lock()
	hides := u.hides
	c.mu.Unlock()
	if hides {
		c.add(&unit{hidden: true})
		last = append(slices.Clone(last), query("ROLLBACK")...)
	}
	return c.send(last)
}

// chance reports whether something of a share happens.
func (c *connection) chance(share float64) bool { return share > 0 && c.random.Float64() < share }

// follow notes what a statement does to the transaction, and returns whether the server was in an explicit one before.
func (c *connection) follow(v verb) (within bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	within = c.within
	switch v {
	case begins:
		c.within = true
	case commits, aborts:
		c.within = false
	case works, sets:
	}
	return within
}

// statementFails decides about a statement.
func (c *connection) statementFails(u *unit) bool {
	u.done = true
	c.proxy.statements.Add(1)
	if !c.chance(c.proxy.habits.Load().FailStatements) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	u.failing = statementFault
	return true
}

// commitFails decides about a commit, by a statement of its own or not. The answer to one that does not fail may get lost.
func (c *connection) commitFails(u *unit, explicit bool) bool {
	habits := c.proxy.habits.Load()
	c.proxy.commits.Add(1)
	fails, drop := c.chance(habits.FailCommits), c.chance(habits.DropCommits)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.aborted && explicit: // it is a rollback
		return false
	case fails:
		u.failing, u.hides = commitFault, explicit
		return true
	}
	u.drop = u.drop || drop
	return false
}

// fails decides about a statement, or a commit, of a unit.
func (c *connection) fails(u *unit, v verb) bool {
	within := c.follow(v)
	switch v {
	case works:
		return c.statementFails(u)
	case commits:
		return within && c.commitFails(u, true)
	case begins, aborts, sets:
	}
	return false
}

// commitsItself reports whether the unit's end is a commit: it has done something, and no transaction is open.
func (c *connection) commitsItself(u *unit) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.within && u.done && u.failing == noFault
}

// execute passes an Execute on, or has it fail. What comes behind a failure is the server's to skip.
func (c *connection) execute(u *unit, sql string, message []byte) error {
	c.mu.Lock()
	failing := u.failing != noFault
	c.mu.Unlock()
	if !failing && c.fails(u, verbOf(sql)) {
		message = failingParse()
	}
	return c.send(message)
}

// sync ends a batch, which commits if it is a transaction of its own.
func (c *connection) sync(message []byte) error {
	u := c.begin()
	if c.commitsItself(u) && c.commitFails(u, false) {
		message = append(failingParse(), message...)
	}
	return c.end(message)
}

// query passes the statements of a Query on, up to the one that fails.
func (c *connection) query(sql string) error {
	u := c.begin()
	statements := split(sql)
	committed := false
	for i, statement := range statements {
		v := verbOf(statement)
		if c.fails(u, v) {
			return c.end(query(strings.Join(append(statements[:i:i], failure), ";")))
		}
		committed = committed || v == commits
	}
	if !committed && c.commitsItself(u) && c.commitFails(u, false) {
		sql += "\n;" + failure
	}
	return c.end(query(sql))
}
