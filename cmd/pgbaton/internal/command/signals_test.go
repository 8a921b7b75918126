//go:build unix

package command

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/pulse"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

func TestMain(m *testing.M) {
	supervise.BecomeKeeper()
	os.Exit(m.Run())
}

// granted is a grant that is lost for err.
type granted struct{ err error }

func (granted) Token() pgbaton.Token  { return 1 }
func (granted) Done() <-chan struct{} { return nil }
func (g granted) Err() error          { return g.err }
func inAnHour() time.Time             { return time.Now().Add(time.Hour) }
func exits(status string) supervise.Command {
	return supervise.Command{
		Path: "/bin/sh", Args: []string{"sh", "-c", "exit " + status}, Env: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Grace: time.Second,
	}
}

// TestSignals_NoneIsMissed sends a signal to stop just before a holder takes all signals: it is heard of, and no command starts.
func TestSignals_NoneIsMissed(t *testing.T) { // alone: other calls in this process would take the signals
	for range 100 {
		s := takeSignals()
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGTERM))
		err := s.hold()
		if err == nil { // it comes later
			_, err = s.start(exits("0"), granted{}, inAnHour)
		}
		var halted *haltError
		require.ErrorAs(t, err, &halted)
		require.Equal(t, syscall.SIGTERM, halted.signal)
		s.end()
	}
}

// TestStart_NotAfterALoss: what was lost before the command starts keeps it from being started.
func TestStart_NotAfterALoss(t *testing.T) { // alone, as above
	s := takeSignals()
	defer s.end()
	require.NoError(t, s.hold())
	var lost *lostError

	_, err := s.start(exits("0"), granted{errors.New("lost by a test")}, inAnHour)
	require.ErrorAs(t, err, &lost)
	require.EqualError(t, err, "lost by a test; no command was started")

	_, err = s.start(exits("0"), granted{}, func() time.Time { return time.Now().Add(time.Second / 2) })
	require.ErrorAs(t, err, &lost)
	require.EqualError(t, err, "the server was silent; no command was started")

	p, err := s.start(exits("3"), granted{}, inAnHour)
	require.NoError(t, err)
	require.Equal(t, supervise.Result{Status: 3}, p.Result())
}

// TestLife_EndsWithoutAnswers: the life of a command counts from when the server would owe an answer, also if this process stood still.
func TestLife_EndsWithoutAnswers(t *testing.T) {
	t.Parallel()
	c := &client{pulse: new(pulse.Monitor), ttl: time.Hour}
	require.WithinDuration(t, time.Now().Add(c.ttl/lifeShare), c.life(), c.ttl/10, "nothing was sent yet")
	answer(t, c.pulse)
	require.WithinDuration(t, time.Now().Add(c.ttl/lifeShare), c.life(), c.ttl/10, "the next message is not due")
	c.ttl = time.Nanosecond // as if long ago
	require.LessOrEqual(t, c.life(), c.pulse.Answered().Add(c.ttl))
}

// answer has a server answer a message.
func answer(t *testing.T, m *pulse.Monitor) {
	t.Helper()
	near, far := net.Pipe()
	conn, err := m.Watch(func(context.Context, string, string) (net.Conn, error) { return near, nil })(t.Context(), "", "")
	require.NoError(t, err)
	t.Cleanup(func() {
		conn.Close()
		far.Close()
	})
	go func() { _, _ = io.CopyN(far, far, 1) }()
	_, err = conn.Write([]byte{1})
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1))
	require.NoError(t, err)
}
