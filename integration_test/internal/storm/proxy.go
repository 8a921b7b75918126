package storm

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Direction is a way through a [Proxy].
type Direction int

// The directions.
const (
	ToServer Direction = iota
	ToClient
)

// Session reports what a connection of a client is for.
type Session string

// The kinds of sessions, as the statements on them tell.
const (
	Holding Session = "the session that holds"
	Waiting Session = "the session that waits"
	Rows    Session = "the session for rows"
)

// Proxy is between clients and a server. It delays what passes, holds back a direction of single
// connections, and leads new connections to another server.
type Proxy struct {
	listener net.Listener
	workers  sync.WaitGroup

	mu     sync.Mutex
	moving *sync.Cond
	target string
	delay  time.Duration // each way
	slice  int           // bytes that pass at once; 0 for all
	pairs  map[*pair]struct{}
	cuts   int // how many times all connections were ended
	closed bool
}

// pair is a connection through a proxy.
type pair struct {
	proxy  *Proxy
	ends   [2]net.Conn // by the direction that they read from
	kind   Session
	silent [2]bool
	left   int // bytes that pass before it is cut; negative for no end
	closed bool
}

// NewProxy makes a proxy in front of an address.
func NewProxy(target string) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing to wait for
	if err != nil {
		return nil, err
	}
	p := &Proxy{listener: listener, target: target, pairs: map[*pair]struct{}{}}
	p.moving = sync.NewCond(&p.mu)
	p.workers.Go(p.accept)
	return p, nil
}

// Addr returns the address for clients.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Lead leads connections that come from now on to another address, or nowhere if it is empty.
func (p *Proxy) Lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Target returns where new connections lead.
func (p *Proxy) Target() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

// Cut ends all connections, also those that are just being made.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts++
	for c := range p.pairs {
		c.close()
	}
}

// Delay makes every byte that comes from now on late, in each direction.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Slice lets so many bytes pass at once, or all if it is none.
func (p *Proxy) Slice(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slice = n
}

// CutAfter cuts a random connection after so many more bytes, in either direction. It reports whether there is one.
func (p *Proxy) CutAfter(n int, random *rand.Rand) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*pair
	for c := range p.pairs {
		if c.left < 0 {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return false
	}
	all[random.IntN(len(all))].left = n
	return true
}

// Silence holds back a direction of a random connection of a kind, until the returned function is called, which either
// lets everything pass that was held back, or cuts the connection. Nil says that there is no such connection.
func (p *Proxy) Silence(kind Session, direction Direction, random *rand.Rand) (end func(cut bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fitting []*pair
	for c := range p.pairs {
		if c.kind == kind && !c.silent[direction] {
			fitting = append(fitting, c)
		}
	}
	if len(fitting) == 0 {
		return nil
	}
	c := fitting[random.IntN(len(fitting))]
	c.silent[direction] = true
	return func(cut bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		c.silent[direction] = false
		if cut {
			c.close()
		}
		p.moving.Broadcast()
	}
}

// Open returns how many connections are open.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Close cuts all connections and ends the proxy.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Cut()
	p.workers.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		target, cuts := p.target, p.cuts
		p.mu.Unlock()
		server, err := net.DialTimeout("tcp", target, 5*time.Second) //nolint:noctx // bounded
		if err != nil {
			_ = client.Close()
			continue
		}
		c := &pair{proxy: p, ends: [2]net.Conn{client, server}, kind: Holding, left: -1}
		p.mu.Lock()
		p.pairs[c] = struct{}{}
		if p.closed || p.cuts != cuts {
			c.close()
		}
		p.mu.Unlock()
		p.workers.Go(func() { c.pass(ToServer) })
		p.workers.Go(func() { c.pass(ToClient) })
	}
}

// close ends a connection; the proxy's mutex is held.
func (c *pair) close() {
	if c.closed {
		return
	}
	c.closed = true
	_ = c.ends[ToServer].Close()
	_ = c.ends[ToClient].Close()
	delete(c.proxy.pairs, c)
	c.proxy.moving.Broadcast()
}

type chunk struct {
	bytes []byte
	due   time.Time
}

// pass moves bytes in a direction until an end closes.
func (c *pair) pass(direction Direction) {
	chunks := make(chan chunk, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.write(direction, chunks)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := c.ends[direction].Read(buf)
		if err != nil {
			break
		}
		if direction == ToServer {
			c.look(buf[:n])
		}
		c.proxy.mu.Lock()
		delay := c.proxy.delay
		c.proxy.mu.Unlock()
		chunks <- chunk{bytes.Clone(buf[:n]), time.Now().Add(delay)}
	}
	close(chunks)
	<-done
	c.proxy.mu.Lock()
	defer c.proxy.mu.Unlock()
	c.close()
}

// write sends what was read when it is due; of a connection that ends, nothing more.
func (c *pair) write(direction Direction, chunks <-chan chunk) {
	for next := range chunks {
		if wait := time.Until(next.due); wait > 0 {
			time.Sleep(wait)
		}
		for bytes := next.bytes; len(bytes) > 0; {
			n := c.mayPass(direction, len(bytes))
			if n == 0 {
				break
			}
			if _, err := c.ends[1-direction].Write(bytes[:n]); err != nil {
				c.proxy.mu.Lock()
				c.close()
				c.proxy.mu.Unlock()
			}
			bytes = bytes[n:]
		}
	}
}

// mayPass waits while the direction is silent, and returns how many bytes may pass next: none of a connection that has ended.
func (c *pair) mayPass(direction Direction, bytes int) int {
	c.proxy.mu.Lock()
	defer c.proxy.mu.Unlock()
	for c.silent[direction] && !c.closed {
		c.proxy.moving.Wait()
	}
	if c.proxy.slice > 0 {
		bytes = min(bytes, c.proxy.slice)
	}
	if c.left >= 0 {
		bytes = min(bytes, c.left)
		if c.left -= bytes; bytes == 0 {
			c.close()
		}
	}
	if c.closed {
		return 0
	}
	return bytes
}

// look learns from the statements that a client prepares what the connection is for.
func (c *pair) look(sent []byte) {
	kind := Session("")
	switch {
	case bytes.Contains(sent, []byte("wait_for_turn")):
		kind = Waiting
	case bytes.Contains(sent, []byte("LISTEN pgbaton_lease")), bytes.Contains(sent, []byte("LISTEN pgbaton_free")): // it is one that holds
		return
	case bytes.Contains(sent, []byte("LISTEN pgbaton")):
		kind = Rows
	default:
		return
	}
	c.proxy.mu.Lock()
	defer c.proxy.mu.Unlock()
	c.kind = kind
}
