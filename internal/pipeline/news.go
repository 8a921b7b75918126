package pipeline

import (
	"bytes"
	"context"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
)

// lookEvery bounds how often the socket is looked at: a look costs half a microsecond, and a hand-over in memory not
// much more.
const lookEvery = 20 * time.Microsecond

// socket looks at what the server has said and nobody has read yet.
//
// PostgreSQL tells a session that it is being ended before it frees the session's locks. So at the time at which another
// session is granted one of them, the news has left the server, and on a quick network it lies in this machine's memory,
// while the goroutine that reads waits for a processor.
type socket struct {
	conn   syscall.RawConn // nil if there is no socket to look at
	looked atomic.Int64    // when it was looked at last, in nanoseconds after the pipeline was born
	asked  atomic.Int32    // batches under way: what is unread may be their answers

	// Of the goroutine that looks.
	looking atomic.Bool
	look    func(fd uintptr)
	buf     [256]byte
	n       int
	err     error
}

func (s *socket) open(conn any) {
	if c, ok := conn.(syscall.Conn); ok {
		s.conn, _ = c.SyscallConn() // without it there are no early news
	}
	s.look = func(fd uintptr) { s.n, s.err = peek(fd, s.buf[:]) }
}

// news reports whether something is unread that nobody has asked for. At most once in lookEvery, and one at a time.
func (s *socket) news(now time.Duration) bool {
	if s.conn == nil || int64(now)-s.looked.Load() < int64(lookEvery) || !s.looking.CompareAndSwap(false, true) {
		return false
	}
	defer s.looking.Store(false)
	s.looked.Store(int64(now))
	asked := s.asked.Load() > 0
	if s.conn.Control(s.look) != nil {
		return true // it is closed
	}
	switch {
	case s.err != nil:
		return false // nothing to read
	case s.n == 0:
		return true // the end
	}
	switch s.buf[0] {
	case 'A', 'N', 'S': // a notification, a notice, a changed parameter
		asked = true
	}
	return !asked || bytes.Contains(s.buf[:s.n], fatalField)
}

// fatalField begins a message that ends the session: its severity, not translated.
var fatalField = []byte("VFATAL\x00")

// CatchUp makes sure that the pipeline knows what the server has said by now, as far as that has arrived: if something lies
// unread, it waits until it is read, or ctx ends. So a session that the server has ended is known to be lost, in nearly every case before
// another one is granted its locks.
func (p *Pipeline[O]) CatchUp(ctx context.Context) {
	if !p.socket.news(time.Since(p.born)) {
		return
	}
	read := make(chan struct{}) // its answer comes after what is unread
	p.Ask(&stmtPing, pulse{}, func(error) { close(read) })
	p.Help(ctx, func() bool { return chans.Closed(read) })
	select {
	case <-read: // at the latest with the trust in the pipeline
	case <-ctx.Done():
	}
}
