package session

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A pooler can give a client what was meant for another one. PgBouncer 1.18 does so when a client is killed that had a second
// Sync under way: after the first ReadyForQuery it takes the server's connection for a clean one and hands it on, and the next client is
// given the answer to the second, and after that each answer one too late. It is enough that one program among all behind the pooler
// sends ahead, as some drivers do.
//
// An answer that is somebody else's would break every law. So whatever goes through a pooler has a number with it that must come
// back first; and nothing is sent ahead of a ReadyForQuery, so that no client of this library does to others what it guards against.

// ErrForeign means that an answer is not to what was asked.
var ErrForeign = errors.New("a pooler has given this client the answer of another one")

// Number is a number that nobody else has sent.
func Number() int64 { return rand.Int64N(1<<62) + 1 } //nolint:gosec // only has to be unlike the ones of others

// numbered is the statement that returns a number, as a command.
func numbered(number int64) Command {
	return Command{What: "make sure of the answer", SQL: "SELECT $1::bigint", Params: [][]byte{strconv.AppendInt(nil, number, 10)}}
}

// echoed reports whether rows are what numbered returns.
func echoed(rows [][][]byte, number int64) bool {
	return len(rows) == 1 && len(rows[0]) == 1 && string(rows[0][0]) == strconv.FormatInt(number, 10)
}

// spoilTimeout bounds the last message on a connection that is given up.
const spoilTimeout = 100 * time.Millisecond

// Spoil begins a transaction on a connection that is about to be closed. A pooler closes the server's connection of a client that has
// gone in the middle of one, and with it what is left there of another client's answers, which it would give to the next one.
func Spoil(conn net.Conn, front *pgproto3.Frontend) {
	_ = conn.SetWriteDeadline(time.Now().Add(spoilTimeout))
	front.SendParse(&pgproto3.Parse{Query: "SELECT 1"})
	front.Send(&pgproto3.Flush{})
	_ = front.Flush() // without it the next client finds out in the same way
}

// spoilIfForeign is [Spoil] for a connection that an error has made doubtful.
func spoilIfForeign(conn *pgconn.PgConn, err error) {
	if errors.Is(err, ErrForeign) && !conn.IsClosed() {
		Spoil(conn.Conn(), conn.Frontend())
		_ = conn.Conn().Close()
	}
}
