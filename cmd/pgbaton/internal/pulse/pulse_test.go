package pulse_test

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/pulse"
)

// pair opens a watched connection, and returns it and the server's end.
func pair(t *testing.T, m *pulse.Monitor) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	dial := m.Watch((&net.Dialer{}).DialContext)
	client, err = dial(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	server, err = listener.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestSilent(t *testing.T) {
	t.Parallel()
	m := new(pulse.Monitor)
	require.Zero(t, m.Silent(), "no connection was opened yet")
	require.Zero(t, m.Answered())
	client, server := pair(t, m)
	other, _ := pair(t, m)
	require.Zero(t, m.Silent())

	before := time.Now()
	write(t, client)
	since := m.Silent()
	require.False(t, since.Before(before))
	write(t, client)
	require.Equal(t, since, m.Silent(), "it counts from the first write")
	write(t, other)
	require.Equal(t, since, m.Silent(), "it counts from the oldest debt")

	require.Zero(t, m.Answered(), "nothing was answered yet")
	write(t, server)
	_, err := client.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, m.Silent().After(since), "the other connection still owes")
	require.Equal(t, since, m.Answered(), "it counts from when the message was sent")
	write(t, server)
	_, err = client.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Equal(t, since, m.Answered(), "what comes unasked answers nothing")
	require.NoError(t, other.Close())
	require.Error(t, other.Close(), "a second time is no end of another one")
	require.Zero(t, m.Silent())

	require.NoError(t, client.Close())
	require.False(t, m.Silent().Before(since), "nobody is there to answer")
	pair(t, m)
	require.Zero(t, m.Silent())
}

func write(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := conn.Write([]byte{1})
	require.NoError(t, err)
}

func TestWatch_RefusedDial(t *testing.T) {
	t.Parallel()
	m := new(pulse.Monitor)
	_, err := m.Watch((&net.Dialer{}).DialContext)(context.Background(), "tcp", "127.0.0.1:1")
	require.Error(t, err)
	require.Zero(t, m.Silent())
}

func TestSocket(t *testing.T) {
	t.Parallel()
	client, _ := pair(t, new(pulse.Monitor))
	socket, ok := client.(syscall.Conn)
	require.True(t, ok)
	_, err := socket.SyscallConn()
	require.NoError(t, err)
}
