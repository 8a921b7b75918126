package emulation

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// connection is one of a client's, with the one to the server that belongs to it.
type connection struct {
	proxy          *Proxy
	client, server net.Conn
	random         *rand.Rand
	out            chan chunk // to the client

	// What the client has sent, as the goroutine that reads it knows it.
	statements, portals map[string]string // the SQL behind a name
	unit                *unit             // that is being sent

	mu    sync.Mutex
	units []*unit // that are not answered yet, the first first
	// within reports whether the server is in an explicit transaction when it has done all that was sent.
	within  bool
	aborted bool // that transaction has failed, as far as the server has said
}

// unit is what one ReadyForQuery answers: the messages up to a Sync, a Query or a FunctionCall.
type unit struct {
	hidden bool // it is the proxy's own, and ends the transaction of the one before

	// For the goroutine that reads requests.
	done bool // a statement of it has been sent that works

	// Guarded by the connection's mutex.
	failing fault // what it is made to fail as
	drop    bool  // the answer gets lost if it is that of a commit
	hides   bool  // a hidden one follows

	// For the goroutine that reads answers.
	held   []byte // the answers, while it is open whether they get lost
	failed bool   // an error was among the answers
}

type fault uint8

const (
	noFault fault = iota
	statementFault
	commitFault
)

// serve serves a client's connection.
func (p *Proxy) serve(client net.Conn) {
	defer p.hangUp(client)
	r := bufio.NewReader(client)
	for {
		opening, code, err := readOpening(r)
		if err != nil {
			return
		}
		switch code {
		case tlsCode, gssCode:
			if _, err := client.Write([]byte{'N'}); err != nil {
				return
			}
			continue
		case cancelCode:
			p.cancel(opening)
			return
		}
		server, err := p.dial()
		if err != nil {
			return
		}
		defer p.hangUp(server)
		if _, err := server.Write(opening); err != nil {
			return
		}
		number := p.connections.Add(1)
		c := &connection{
			proxy: p, client: client, server: server, out: make(chan chunk, 1024), statements: map[string]string{}, portals: map[string]string{},
			random: rand.New(rand.NewPCG(p.habits.Load().Seed, uint64(number))), //nolint:gosec // no secret
		}
		c.run(r)
		return
	}
}

// cancel passes a request to cancel on, and waits until the server has taken it.
func (p *Proxy) cancel(request []byte) {
	server, err := p.dial()
	if err != nil {
		return
	}
	defer p.hangUp(server)
	if _, err := server.Write(request); err == nil {
		p.cancels.Add(1)
		_, _ = io.Copy(io.Discard, server) // until the server hangs up
	}
}

// run passes messages both ways until an end closes.
func (c *connection) run(client *bufio.Reader) {
	var others sync.WaitGroup
	written := make(chan struct{})
	others.Go(func() {
		defer close(written)
		c.write()
	})
	others.Go(func() {
		c.answers()
		close(c.out)
		<-written // the server's last word
		c.cut()
	})
	for {
		kind, message, err := read(client)
		if err != nil || c.request(kind, message) != nil {
			break
		}
	}
	c.cut()
	others.Wait()
}

// cut ends the connection.
func (c *connection) cut() {
	_ = c.client.Close()
	_ = c.server.Close()
}

// chunk is an answer that is due at a time.
type chunk struct {
	bytes []byte
	due   time.Time
}

// write gives the client what is due.
func (c *connection) write() {
	for next := range c.out {
		if wait := time.Until(next.due); wait > 0 {
			time.Sleep(wait)
		}
		if _, err := c.client.Write(next.bytes); err != nil {
			c.cut() // answers that are left go nowhere
		}
	}
}
