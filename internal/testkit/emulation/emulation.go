// Package emulation is a proxy that gives a PostgreSQL the habits of a distributed engine: statements and commits that fail with
// SQLSTATE 40001 though nothing is wrong with them, commits whose answer is lost with the connection, and round trips that
// take as long as a quorum does. It speaks version 3 of PostgreSQL's protocol, simple and extended, with pipelining.
//
// # What it guarantees
//
//   - A failure is true: the server has undone what the client is told has failed, the whole transaction that the statement or
//     the commit belongs to. After the failure of a statement an explicit transaction is aborted, until its client ends it;
//     after that of a commit it is over.
//   - A drop is true as well: the server has committed, and has said so, before the connection is cut.
//   - Choices are random by a seed and the number of the connection, so the same statements of one connection meet the same faults.
//   - What begins or ends a transaction without writing, and what only sets or shows a setting, does not fail.
//
// # What it does not
//
// It offers no TLS. It does not know what a statement reads or writes, so statements fail that conflict with nothing.
//
// # How it works
//
// Messages are passed on one by one. A statement fails because a statement is sent in its place that fails: it calls a function
// that does not exist, whose name marks the error, which is given another SQLSTATE on its way back. An implicit
// transaction's commit, at Sync or at the end of a Query, fails by such a statement behind all others. An explicit COMMIT is replaced
// by it as well, and a ROLLBACK follows, which the client does not see. A [unit] is what one ReadyForQuery answers.
package emulation

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Habits are what the engine does. Shares are between 0 and 1.
type Habits struct {
	Seed           uint64
	FailStatements float64       // share of statements that fail with 40001
	FailCommits    float64       // share of commits that do
	DropCommits    float64       // share of commits after which the connection is cut, before the client has the answer
	Delay          time.Duration // of every answer
}

// Counts are what has happened so far.
type Counts struct {
	Connections, Cancels            int64
	Statements, Commits             int64 // that could have failed
	FailedStatements, FailedCommits int64
	DroppedCommits                  int64
}

// Faults returns how many there were.
func (c Counts) Faults() int64 { return c.FailedStatements + c.FailedCommits + c.DroppedCommits }

// Proxy is the engine.
type Proxy struct {
	url             string
	network, target string
	listener        net.Listener
	workers         sync.WaitGroup
	habits          atomic.Pointer[Habits]

	connections, cancels, statements, commits       atomic.Int64
	failedStatements, failedCommits, droppedCommits atomic.Int64

	mu     sync.Mutex
	open   map[net.Conn]struct{}
	closed bool
}

// Start starts a proxy in front of a database's server, whose address is a URL. Close ends it.
func Start(dsn string, habits Habits) (*Proxy, error) {
	cfg, err := pgconn.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u.Host = listener.Addr().String()
	query := u.Query()
	query.Del("host")
	query.Del("port")
	query.Set("sslmode", "disable")
	u.RawQuery = query.Encode()
	p := &Proxy{url: u.String(), listener: listener, open: map[net.Conn]struct{}{}}
	p.network, p.target = pgconn.NetworkAddress(cfg.Host, cfg.Port)
	p.Set(habits)
	p.workers.Go(p.accept)
	return p, nil
}

// URL returns the database's address through the proxy.
func (p *Proxy) URL() string { return p.url }

// Set changes the habits. The seed counts for connections that come later.
func (p *Proxy) Set(habits Habits) { p.habits.Store(&habits) }

// Counts returns what has happened so far.
func (p *Proxy) Counts() Counts {
	return Counts{
		Connections: p.connections.Load(), Cancels: p.cancels.Load(), Statements: p.statements.Load(), Commits: p.commits.Load(),
		FailedStatements: p.failedStatements.Load(), FailedCommits: p.failedCommits.Load(), DroppedCommits: p.droppedCommits.Load(),
	}
}

// Close cuts all connections, and waits until the proxy's goroutines have ended.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for conn := range p.open {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.workers.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		if p.keep(client) {
			p.workers.Go(func() { p.serve(client) })
		}
	}
}

// keep has Close close a connection, or closes it if that has been.
func (p *Proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = conn.Close()
		return false
	}
	p.open[conn] = struct{}{}
	return true
}

// hangUp closes a connection.
func (p *Proxy) hangUp(conn net.Conn) {
	_ = conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, conn)
}

// dial opens a connection to the server.
func (p *Proxy) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, p.network, p.target)
	if err == nil && !p.keep(conn) {
		err = fmt.Errorf("the proxy is closed")
	}
	return conn, err
}

const dialTimeout = 30 * time.Second
