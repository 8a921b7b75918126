package pipeline

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestSocket_News(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	for name, test := range map[string]struct {
		says  string
		asked int32
		ends  bool
		news  bool
	}{
		"silence":                                 {},
		"a word that nobody asked for":            {says: "E\x00", news: true},
		"a notification":                          {says: "A\x00\x00\x00\x10"},
		"a notification and the end":              {says: "A\x00\x00\x00\x04E\x00\x00\x00\x10SFATAL\x00VFATAL\x00", news: true},
		"an answer":                               {says: "T\x00\x00\x00\x04", asked: 1},
		"an answer and the end of the session":    {says: "T\x00\x00\x00\x04E\x00\x00\x00\x10SFATAL\x00VFATAL\x00", asked: 1, news: true},
		"the end of the connection":               {ends: true, news: true},
		"the end of the connection, with a query": {ends: true, asked: 1, news: true},
	} {
		client, err := net.Dial("tcp", listener.Addr().String())
		require.NoError(t, err)
		server, err := listener.Accept()
		require.NoError(t, err)
		var s socket
		s.open(client)
		s.asked.Store(test.asked)
		_, err = server.Write([]byte(test.says))
		require.NoError(t, err)
		if test.ends {
			require.NoError(t, server.Close())
		}
		now := time.Duration(0)
		look := func() bool { now += lookEvery; return s.news(now) }
		if test.news {
			for end := time.Now().Add(testkit.Patience); !look(); time.Sleep(time.Millisecond) {
				require.True(t, time.Now().Before(end), name)
			}
			require.False(t, s.news(now), "not twice in a moment")
		} else {
			for range 20 {
				require.False(t, look(), name)
				time.Sleep(time.Millisecond)
			}
		}
		if test.says != "" { // it is still there for who reads
			got := make([]byte, len(test.says))
			_, err = client.Read(got)
			require.NoError(t, err)
			require.Equal(t, test.says, string(got))
		}
		require.NoError(t, client.Close())
		require.True(t, look(), "closed by us")
		_ = server.Close()
	}
	var none socket
	none.open(struct{}{})
	require.False(t, none.news(time.Hour))
}

func BenchmarkSocket_News(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(b, err)
	defer client.Close()
	var s socket
	s.open(client)
	b.ReportAllocs()
	for i := range b.N {
		s.news(time.Duration(i+1) * lookEvery)
	}
}
