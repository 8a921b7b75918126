package testkit

import (
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

// Counter counts what goes over the connections of a pool's config.
type Counter struct {
	statements, open, most atomic.Int64
}

// Statements is how many statements were sent.
func (c *Counter) Statements() int64 { return c.statements.Load() }

// Connections is how many connections were open at the most at one time.
func (c *Counter) Connections() int64 { return c.most.Load() }

// Counted makes a pool whose config counts. (pg_stat_activity does not show each statement of a round trip.)
func Counted(tb testing.TB, dsn string) (*pgxpool.Pool, *Counter) {
	tb.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(tb, err)
	c := &Counter{}
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c.most.Store(max(c.most.Load(), c.open.Add(1))) // nearly: connections are opened one after the other
		return &countedConn{Conn: conn, counter: c}, nil
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	require.NoError(tb, err)
	tb.Cleanup(pool.Close)
	return pool, c
}

// countedConn reads along what is written: messages of a type, a length and a content, of which the first has no type.
type countedConn struct {
	net.Conn

	counter *Counter
	unread  []byte
	begun   bool
	closed  atomic.Bool
}

func (c *countedConn) Write(p []byte) (int, error) {
	c.unread = append(c.unread, p...)
	for {
		head := 4
		if c.begun {
			head++
		}
		if len(c.unread) < head {
			break
		}
		size := int(binary.BigEndian.Uint32(c.unread[head-4:])) + head - 4
		if len(c.unread) < size {
			break
		}
		if c.begun && (c.unread[0] == 'E' || c.unread[0] == 'Q') { // Execute, Query
			c.counter.statements.Add(1)
		}
		c.begun = true
		c.unread = c.unread[size:]
	}
	return c.Conn.Write(p)
}

func (c *countedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.counter.open.Add(-1)
	}
	return c.Conn.Close()
}
