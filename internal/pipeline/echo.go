package pipeline

import (
	"encoding/binary"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgbaton/pgbaton/internal/session"
)

// echo is the number that must come back before all else of a round trip through a pooler, see [session.ErrForeign].
type echo struct {
	sent     uint64 // 0 if none was
	returned bool
}

var stmtEcho = Statement{Name: "pgbaton_echo", SQL: "SELECT $1", Params: []uint32{pgtype.Int8OID}}

func (e *echo) write(w *Writer) {
	*e = echo{sent: uint64(session.Number())} //nolint:gosec // positive
	w.Send(&stmtEcho, e, binary.BigEndian.AppendUint64(nil, e.sent))
}

// Row implements [Sink].
func (e *echo) Row(values [][]byte) error {
	if e.returned || len(values) != 1 || len(values[0]) != 8 || binary.BigEndian.Uint64(values[0]) != e.sent {
		return session.ErrForeign
	}
	e.returned = true
	return nil
}

// heard reports whether the answer is to what was sent.
func (e *echo) heard() bool { return e.sent == 0 || e.returned }

// spoil is [session.Spoil], unless somebody is writing.
func (p *Pipeline[O]) spoil() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed && !p.sending {
		session.Spoil(p.conn, p.front)
	}
}
