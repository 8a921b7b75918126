package emulation

import (
	"bufio"
	"time"
)

// answers passes on what the server says until it hangs up or an answer is to get lost.
func (c *connection) answers() {
	r := bufio.NewReaderSize(c.server, 32<<10)
	var out []byte
	flush := func() {
		if len(out) > 0 {
			c.out <- chunk{out, time.Now().Add(c.proxy.habits.Load().Delay)}
			out = nil
		}
	}
	defer flush()
	for {
		kind, message, err := read(r)
		if err != nil {
			if u := c.first(); u != nil {
				out = append(out, u.held...)
			}
			return
		}
		passes, lost := c.answer(kind, message)
		if lost {
			out = nil
			c.cut()
			return
		}
		out = append(out, passes...)
		if r.Buffered() == 0 {
			flush()
		}
	}
}

// first returns the unit that the server answers; nil while it logs the client in.
func (c *connection) first() *unit {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.units) == 0 {
		return nil
	}
	return c.units[0]
}

// answer returns what the client gets of a message, or that the connection is to be cut before.
func (c *connection) answer(kind byte, message []byte) (passes []byte, lost bool) {
	u := c.first()
	if u == nil {
		return message, false
	}
	switch kind {
	case 'A', 'S': // these come at any time
		return message, false
	case 'E':
		u.failed = true
		if marked(body(message)) {
			message = conflict()
			c.count(u)
		}
	case 'Z':
		return c.ready(u, message)
	}
	c.mu.Lock()
	drop := u.drop
	c.mu.Unlock()
	switch {
	case u.hidden:
		return nil, false
	case drop || u.held != nil:
		u.held = append(u.held, message...)
		return nil, false
	}
	return message, false
}

// count counts a failure that the client is told of.
func (c *connection) count(u *unit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if u.failing == commitFault {
		c.proxy.failedCommits.Add(1)
	} else {
		c.proxy.failedStatements.Add(1)
	}
}

// ready takes the end of a unit, which says whether a transaction is open.
func (c *connection) ready(u *unit, message []byte) (passes []byte, lost bool) {
	idle := body(message)[0] == 'I'
	c.mu.Lock()
	defer c.mu.Unlock()
	c.units = c.units[1:]
	if len(c.units) == 0 {
		c.within, c.aborted = !idle, body(message)[0] == 'E'
	}
	switch {
	case u.hides:
		return u.held, false
	case u.drop && idle && !u.failed:
		c.proxy.droppedCommits.Add(1)
		return nil, true
	}
	return append(u.held, message...), false
}
