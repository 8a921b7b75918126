package migrator

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// scripted is a connection to a server that answers each query with the next of some SQLSTATEs; "" is success. It returns what the server
// was sent once the connection is closed.
func scripted(t *testing.T, codes ...string) (conn *pgx.Conn, queries func() []string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // nothing to cancel
	require.NoError(t, err)
	sent := make(chan []string, 1)
	go func() {
		var got []string
		defer func() { sent <- got }()
		defer listener.Close()
		socket, err := listener.Accept()
		if err != nil {
			return
		}
		defer socket.Close()
		server := pgproto3.NewBackend(socket, socket)
		if _, err := server.ReceiveStartupMessage(); err != nil {
			return
		}
		server.Send(&pgproto3.AuthenticationOk{})
		server.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "16.0"})
		status := byte('I')
		for {
			server.Send(&pgproto3.ReadyForQuery{TxStatus: status})
			if server.Flush() != nil {
				return
			}
			message, err := server.Receive()
			query, ok := message.(*pgproto3.Query)
			if err != nil || !ok || len(codes) == 0 {
				return
			}
			verb, _, _ := strings.Cut(query.String, " ")
			got = append(got, strings.ToUpper(verb))
			switch code := codes[0]; {
			case code != "":
				server.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code})
				status = 'E'
			case verb == "BEGIN":
				server.Send(&pgproto3.CommandComplete{CommandTag: []byte("BEGIN")})
				status = 'T'
			default:
				server.Send(&pgproto3.CommandComplete{CommandTag: []byte(verb)})
				status = 'I'
			}
			codes = codes[1:]
		}
	}()
	conn, err = pgx.Connect(t.Context(), "postgres://u@"+listener.Addr().String()+"/d?sslmode=disable")
	require.NoError(t, err)
	return conn, func() []string {
		require.NoError(t, conn.Close(t.Context()))
		return <-sent
	}
}

// A transaction whose first statements the role's statement_timeout has ended is begun again, and one that fails otherwise is not.
func TestRun_BeginsAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		codes, queries []string
		fails          string
	}{
		"AtOnce":        {[]string{""}, []string{"BEGIN"}, ""},
		"TimedOut":      {[]string{pgerr.QueryCanceled, "", pgerr.QueryCanceled, "", ""}, []string{"BEGIN", "ROLLBACK", "BEGIN", "ROLLBACK", "BEGIN"}, ""},
		"TimedOutTwice": {[]string{pgerr.QueryCanceled, pgerr.QueryCanceled, "", ""}, []string{"BEGIN", "ROLLBACK", "ROLLBACK", "BEGIN"}, ""},
		"NotAllowed":    {[]string{pgerr.InsufficientPrivilege}, []string{"BEGIN"}, pgerr.InsufficientPrivilege},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, queries := scripted(t, c.codes...)
			tx, err := beginner{conn}.Begin(t.Context())
			require.Equal(t, c.fails, pgerr.Code(err))
			require.Equal(t, c.fails == "", tx != nil && err == nil)
			require.Equal(t, c.queries, queries())
		})
	}
}

// The transaction in which advisory locks are tried out is begun again as well: a server whose role has a short statement_timeout has them.
func TestInTransactions_BeginsAgain(t *testing.T) {
	t.Parallel()
	conn, queries := scripted(t, pgerr.QueryCanceled, "", "", "")
	probed := 0
	err := inTransactions(t.Context(), conn.PgConn(), nil, func(context.Context, *pgconn.PgConn, *pgconn.PgConn) error {
		probed++
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 1, probed)
	require.Equal(t, []string{"BEGIN", "ROLLBACK", "BEGIN", "ROLLBACK"}, queries())
}

// What the role's settings may end comes behind what lifts them.
func TestPins_LiftTimeoutsFirst(t *testing.T) {
	t.Parallel()
	require.True(t, strings.HasPrefix(pins, "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; "))
}
