// Package pulse notices that a database server has fallen silent, before anything is lost by that.
//
// A [Monitor] watches the connections that are opened through it. A connection owes an answer from the first write that nothing
// was read after; while no connection is open, the answer is owed since the last one was closed. [Monitor.Silent] returns since when. A client
// of pgbaton that holds something writes at least every third of its TTL, so silence is noticed that long after it began at the latest.
//
// What it does not: it reads no protocol, so a server that sends half of an answer is not silent. The grant itself knows better, and
// ends at nine tenths of the TTL; silence is only the earlier warning.
package pulse

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Monitor watches connections. The zero Monitor is ready.
type Monitor struct {
	mu       sync.Mutex
	open     map[*watched]struct{}
	ended    time.Time // when the last connection was closed, if none is open
	answered time.Time // when the latest was sent of what was answered
}

// Watch returns a dial function whose connections are watched.
func (m *Monitor) Watch(dial pgconn.DialFunc) pgconn.DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		w := &watched{Conn: conn, monitor: m}
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.open == nil {
			m.open = map[*watched]struct{}{}
		}
		m.open[w] = struct{}{}
		return w, nil
	}
}

// Silent returns since when the server owes an answer; the zero time if it owes none.
func (m *Monitor) Silent() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.open) == 0 {
		return m.ended
	}
	var since time.Time
	for w := range m.open {
		if !w.owed.IsZero() && (since.IsZero() || w.owed.Before(since)) {
			since = w.owed
		}
	}
	return since
}

// Answered returns when the latest was sent of what was answered, so that a process that stood still can tell for how long it may have; the
// zero time if nothing was.
func (m *Monitor) Answered() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.answered
}

// watched is a connection.
type watched struct {
	net.Conn

	monitor *Monitor
	owed    time.Time // since when an answer is owed; protected by the monitor's mu
}

var _ syscall.Conn = (*watched)(nil)

func (w *watched) Write(b []byte) (int, error) {
	w.monitor.mu.Lock()
	if w.owed.IsZero() {
		w.owed = time.Now()
	}
	w.monitor.mu.Unlock()
	return w.Conn.Write(b)
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.monitor.mu.Lock()
		if w.owed.After(w.monitor.answered) {
			w.monitor.answered = w.owed
		}
		w.owed = time.Time{}
		w.monitor.mu.Unlock()
	}
	return n, err
}

func (w *watched) Close() error {
	w.monitor.mu.Lock()
	if _, open := w.monitor.open[w]; open {
		delete(w.monitor.open, w)
		if len(w.monitor.open) == 0 {
			w.monitor.ended = time.Now()
		}
	}
	w.monitor.mu.Unlock()
	return w.Conn.Close()
}

var errNoSocket = errors.New("the connection is no socket")

// SyscallConn is the socket, for clients that look at it without reading.
func (w *watched) SyscallConn() (syscall.RawConn, error) {
	if c, ok := w.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errNoSocket
}
