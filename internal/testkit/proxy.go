package testkit

import (
	"context"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Proxy is a bad network. Its client's end is a real socket, so deadlines work as they do in life.
type Proxy struct {
	listener net.Listener
	target   func(context.Context) (net.Conn, error)
	workers  sync.WaitGroup

	mu      sync.Mutex
	moving  *sync.Cond
	stalled bool
	refused bool
	slice   int // bytes that pass at once; 0 for all
	left    int // bytes that pass before everything is cut; negative for no end
	pairs   map[net.Conn]net.Conn
	dialled int
	rewrite func([]byte) // changes what the server says
}

// Through makes a proxy and a connection config that uses it.
func Through(tb testing.TB, dsn string) (*Proxy, *pgx.ConnConfig) {
	tb.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		tb.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	network, addr := "tcp", net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	p := &Proxy{listener: listener, left: -1, pairs: map[net.Conn]net.Conn{}}
	p.moving = sync.NewCond(&p.mu)
	p.target = func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, network, addr) }
	cfg.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
	}
	p.workers.Add(1)
	go p.accept()
	tb.Cleanup(p.close)
	return p, cfg
}

// URL is dsn through the proxy, for other processes.
func (p *Proxy) URL(tb testing.TB, dsn string) string {
	tb.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		tb.Fatal(err)
	}
	u.Host = p.listener.Addr().String()
	return u.String()
}

// Stall lets nothing pass, and nobody know.
func (p *Proxy) Stall(stalled bool) { p.set(func() { p.stalled = stalled }) }

// Refuse closes new connections at once.
func (p *Proxy) Refuse(refused bool) { p.set(func() { p.refused = refused }) }

// Slice lets so many bytes pass at once.
func (p *Proxy) Slice(n int) { p.set(func() { p.slice = n }) }

// CutAfter cuts every connection after so many more bytes, in either direction.
func (p *Proxy) CutAfter(n int) { p.set(func() { p.left = n }) }

// Rewrite has f change what the server says.
func (p *Proxy) Rewrite(f func([]byte)) { p.set(func() { p.rewrite = f }) }

// Cut cuts every connection.
func (p *Proxy) Cut() {
	p.set(func() {
		for a, b := range p.pairs {
			_ = a.Close()
			_ = b.Close()
		}
	})
}

// Open is how many connections are open.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Dialled is how many ever were.
func (p *Proxy) Dialled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dialled
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.moving.Broadcast()
}

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.Stall(false)
	p.Cut()
	p.workers.Wait()
}

func (p *Proxy) accept() {
	defer p.workers.Done()
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refused := p.refused
		p.dialled++
		p.mu.Unlock()
		server, err := p.target(context.Background())
		if err != nil || refused {
			_ = client.Close()
			continue
		}
		p.set(func() { p.pairs[client] = server })
		p.workers.Add(2)
		go p.copy(client, server, client, false)
		go p.copy(server, client, client, true)
	}
}

// copy moves bytes one way until an end closes.
func (p *Proxy) copy(from, to, client net.Conn, answers bool) {
	defer p.workers.Done()
	defer func() {
		_ = from.Close()
		_ = to.Close()
		p.set(func() { delete(p.pairs, client) })
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		for chunk := buf[:n]; len(chunk) > 0; {
			size := p.pass(chunk, answers)
			if size == 0 {
				return
			}
			if _, failed := to.Write(chunk[:size]); failed != nil {
				return
			}
			chunk = chunk[size:]
		}
		if err != nil {
			return
		}
	}
}

// pass reports how many bytes may pass now; 0 is a cut.
func (p *Proxy) pass(chunk []byte, answers bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.stalled {
		p.moving.Wait()
	}
	if answers && p.rewrite != nil {
		p.rewrite(chunk)
	}
	size := len(chunk)
	if p.slice > 0 {
		size = min(size, p.slice)
	}
	if p.left >= 0 {
		size = min(size, p.left)
		p.left -= size
	}
	return size
}
