package testkit

import (
	"context"
	"net"
	"sync"
	"time"
)

// Slow dials connections that have a round trip of so long: what is written arrives at once, and what is read arrives
// that much after the other side has sent it, in order.
func Slow(roundTrip time.Duration) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		s := &slow{Conn: conn, roundTrip: roundTrip}
		s.arrived = sync.NewCond(&s.mu)
		go s.receive() // it ends with the connection
		return s, nil
	}
}

type slow struct {
	net.Conn

	roundTrip time.Duration

	mu       sync.Mutex
	arrived  *sync.Cond
	packets  []packet
	err      error
	deadline time.Time
}

type packet struct {
	due   time.Time
	bytes []byte
}

func (s *slow) receive() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Conn.Read(buf)
		due := time.Now().Add(s.roundTrip)
		s.mu.Lock()
		if n > 0 {
			s.packets = append(s.packets, packet{due, append([]byte(nil), buf[:n]...)})
		}
		s.err = err
		s.mu.Unlock()
		time.AfterFunc(time.Until(due), s.wake)
		if err != nil {
			return
		}
	}
}

func (s *slow) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived.Broadcast()
}

func (s *slow) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case len(s.packets) > 0 && !now.Before(s.packets[0].due):
			n := copy(b, s.packets[0].bytes)
			if s.packets[0].bytes = s.packets[0].bytes[n:]; len(s.packets[0].bytes) == 0 {
				s.packets = s.packets[1:]
			}
			return n, nil
		case len(s.packets) == 0 && s.err != nil:
			return 0, s.err
		case !s.deadline.IsZero() && !now.Before(s.deadline):
			return 0, timeout{}
		}
		s.arrived.Wait()
	}
}

// SetReadDeadline bounds reads; the connection below is read all the time.
func (s *slow) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	s.arrived.Broadcast()
	if !t.IsZero() {
		time.AfterFunc(max(time.Until(t), 0), s.wake)
	}
	return nil
}

// SetDeadline bounds reads and writes.
func (s *slow) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// timeout is the error of a read whose deadline has passed.
type timeout struct{}

func (timeout) Error() string   { return "i/o timeout" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }
