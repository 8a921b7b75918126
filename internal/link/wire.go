package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgbaton/pgbaton/internal/advisory"
)

// TokensPerDraw is the sequence's increment: a draw of v stands for the tokens v … v+31.
const TokensPerDraw = 32

// Statement is a statement that a link sends, prepared at its first use in a session. Those of a [Call] take and give text.
type Statement struct {
	Name, SQL string
	params    []uint32 // types; of a Call's the server finds out
}

// tries says whether the statement is a lone try: a token, or NULL.
func (s *Statement) tries() bool {
	return s == &stmtTry || s == &stmtTryShared || s == &stmtPolite || s == &stmtPoliteShared
}

// The first six serve a lone operation on a bigint key, the common case, in the fewest steps. CASE
// decides before its branch is run, so the token is drawn after the grant.
var (
	stmtTry = Statement{
		"pgbaton_try",
		"SELECT CASE WHEN pg_try_advisory_lock($1) THEN pgbaton.draw_token() END",
		[]uint32{pgtype.Int8OID},
	}
	stmtTryShared = Statement{
		"pgbaton_try_shared",
		"SELECT CASE WHEN pg_try_advisory_lock_shared($1) THEN pgbaton.draw_token() END",
		[]uint32{pgtype.Int8OID},
	}
	// With a look at the gate, shared with others who look, for the statement alone. Arguments: key, gate.
	stmtPolite = Statement{
		"pgbaton_polite",
		"SELECT CASE WHEN pg_try_advisory_xact_lock_shared($2) THEN CASE WHEN pg_try_advisory_lock($1) " +
			"THEN pgbaton.draw_token() END END",
		[]uint32{pgtype.Int8OID, pgtype.Int8OID},
	}
	stmtPoliteShared = Statement{
		"pgbaton_polite_shared",
		"SELECT CASE WHEN pg_try_advisory_xact_lock_shared($2) THEN CASE WHEN pg_try_advisory_lock_shared($1) " +
			"THEN pgbaton.draw_token() END END",
		[]uint32{pgtype.Int8OID, pgtype.Int8OID},
	}
	stmtUnlock = Statement{
		"pgbaton_unlock",
		"SELECT pg_advisory_unlock($1)",
		[]uint32{pgtype.Int8OID},
	}
	stmtUnlockShared = Statement{
		"pgbaton_unlock_shared",
		"SELECT pg_advisory_unlock_shared($1)",
		[]uint32{pgtype.Int8OID},
	}

	// stmtMany runs any number of operations in their order. Codes 4 to 7 try a key only if nobody stands
	// at its gate; the gate is locked for the statement alone. Arguments: keys, gates, codes.
	//
	// Codes 16 and 18 downgrade. A session that holds a key exclusively is granted it shared at once, before those
	// who wait in the queue, since they wait for this session (ProcSleep; seen on 14 to 18). Only by the function that
	// could wait: the try asks whether anybody waits, before 18, and is refused. The try of the exclusive lock,
	// of which there is one already, is what makes sure of that; it is given back with the first.
	stmtMany = Statement{
		"pgbaton_many", `
SELECT array_agg(CASE code
         WHEN 0 THEN pg_try_advisory_lock(key)
         WHEN 8 THEN pg_advisory_unlock(key)
         WHEN 1 THEN pg_try_advisory_lock_shared(key)
         WHEN 9 THEN pg_advisory_unlock_shared(key)
         WHEN 2 THEN pg_try_advisory_lock((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN 3 THEN pg_try_advisory_lock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN 10 THEN pg_advisory_unlock((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN 11 THEN pg_advisory_unlock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN 12 THEN pg_try_advisory_xact_lock_shared(gate)
         WHEN 16 THEN CASE WHEN pg_try_advisory_lock(key) THEN
              CASE WHEN pg_advisory_lock_shared(key) IS NOT NULL THEN
              CASE WHEN pg_advisory_unlock(key) THEN
              CASE WHEN pg_advisory_unlock(key) THEN true ELSE NOT pg_advisory_unlock_shared(key) END
              ELSE false END ELSE false END ELSE false END
         WHEN 18 THEN CASE WHEN pg_try_advisory_lock((key >> 32)::int4, ((key << 32) >> 32)::int4) THEN
              CASE WHEN pg_advisory_lock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4) IS NOT NULL THEN
              CASE WHEN pg_advisory_unlock((key >> 32)::int4, ((key << 32) >> 32)::int4) THEN
              CASE WHEN pg_advisory_unlock((key >> 32)::int4, ((key << 32) >> 32)::int4) THEN true
                   ELSE NOT pg_advisory_unlock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4) END
              ELSE false END ELSE false END ELSE false END
         ELSE CASE WHEN pg_try_advisory_xact_lock_shared(gate) THEN CASE code
              WHEN 4 THEN pg_try_advisory_lock(key)
              WHEN 5 THEN pg_try_advisory_lock_shared(key)
              WHEN 6 THEN pg_try_advisory_lock((key >> 32)::int4, ((key << 32) >> 32)::int4)
              WHEN 7 THEN pg_try_advisory_lock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
              END ELSE false END
         END)
  FROM unnest($1::int8[], $2::int8[], $3::int2[]) AS operation(key, gate, code)`,
		[]uint32{pgtype.Int8ArrayOID, pgtype.Int8ArrayOID, pgtype.Int2ArrayOID},
	}

	stmtDraw = Statement{
		"pgbaton_draw",
		"SELECT pgbaton.draw_token() FROM generate_series(1, $1)",
		[]uint32{pgtype.Int4OID},
	}
	stmtPing = Statement{"pgbaton_ping", "SELECT pg_is_in_recovery()", nil}
	stmtLook = Statement{"pgbaton_look", "SELECT count(*) FROM pg_locks WHERE NOT fastpath", nil}
	stmtFree = Statement{"pgbaton_free", "SELECT count(pg_advisory_unlock_all())", nil}
)

// Codes of stmtMany; a try is 0. Added to them: 1 for shared, 2 for a pair.
const (
	codeAtGate    = 4
	codeUnlock    = 8
	codeGate      = 12
	codeDowngrade = 16
)

// batch is one round trip: the operations it carries, and their results as they come in.
type batch struct {
	ops  []*Op
	sent time.Time

	locks  []*Op        // those of ops that stmtMany carries, in its order
	steps  []step       // what was sent, in order
	step   int          // whose result comes next
	parsed []*Statement // prepared by it

	granted []bool // of locks, or of the lone operation
	draws   []int64
	count   int64 // of the lock table
	standby bool
	err     *pgconn.PgError
}

// step is a statement that was sent, and the operation it was sent for, if that is a Call.
type step struct {
	statement *Statement
	call      *Op
}

func (b *batch) reset() {
	clear(b.ops)
	clear(b.locks)
	clear(b.steps)
	clear(b.parsed)
	*b = batch{
		ops: b.ops[:0], locks: b.locks[:0], steps: b.steps[:0], parsed: b.parsed[:0], granted: b.granted[:0],
	}
}

// encoder writes batches; its buffers are reused.
type encoder struct {
	keys, gates, codes []byte
	number             [16]byte // room for two
	params             [2][]byte

	pooled   bool // nothing stays prepared
	prepared map[*Statement]bool
}

var binaryFormat = []int16{1}

// encode puts a batch into the frontend's buffer.
func (e *encoder) encode(front *pgproto3.Frontend, b *batch) {
	want := 0
	var extra []*Statement
	for _, op := range b.ops {
		switch op.Kind {
		case Call:
			e.call(front, b, op)
		case Ping:
			extra = append(extra, &stmtPing)
		case Look:
			extra = append(extra, &stmtLook)
		case UnlockAll:
			extra = append(extra, &stmtFree)
		case Draw:
			want += op.Want
		case Unlock, Downgrade, Gate:
			b.locks = append(b.locks, op)
		case Try, TryPolite, TryAtGate:
			want += max(op.Want, 1)
			b.locks = append(b.locks, op)
		}
	}
	if s := lone(b); s != nil && want <= TokensPerDraw {
		params := e.params[:0:2]
		params = append(params, binary.BigEndian.AppendUint64(e.number[:0], uint64(b.ops[0].Key.ID))) //nolint:gosec // the bits are the number
		if len(s.params) > 1 {
			params = append(params, binary.BigEndian.AppendUint64(e.number[8:8], uint64(b.ops[0].Key.Gate()))) //nolint:gosec // the bits are the number
		}
		e.send(front, b, s, params...)
		front.SendSync(&pgproto3.Sync{})
		return
	}
	if len(b.locks) > 0 {
		e.arrays(b.locks)
		e.send(front, b, &stmtMany, e.keys, e.gates, e.codes)
	}
	if want > 0 {
		draws := (want + TokensPerDraw - 1) / TokensPerDraw
		e.send(front, b, &stmtDraw, binary.BigEndian.AppendUint32(e.number[:0], uint32(draws))) //nolint:gosec // small
	}
	for _, s := range extra {
		e.send(front, b, s)
	}
	front.SendSync(&pgproto3.Sync{})
}

// lone returns the statement for a batch of a single simple operation, else nil.
func lone(b *batch) *Statement {
	if len(b.ops) != 1 || b.ops[0].Key.Pair {
		return nil
	}
	both := lonely[b.ops[0].Kind]
	if b.ops[0].Mode == advisory.Shared {
		return both[1]
	}
	return both[0]
}

// lonely are the statements for a lone operation, exclusive and shared.
var lonely = [...][2]*Statement{
	Try:       {&stmtTry, &stmtTryShared},
	TryPolite: {&stmtPolite, &stmtPoliteShared},
	TryAtGate: {&stmtPolite, &stmtPoliteShared},
	Unlock:    {&stmtUnlock, &stmtUnlockShared},
	Call:      {},
}

func (e *encoder) send(front *pgproto3.Frontend, b *batch, s *Statement, params ...[]byte) {
	front.SendBind(&pgproto3.Bind{
		PreparedStatement:    e.prepare(front, b, s),
		ParameterFormatCodes: binaryFormat,
		Parameters:           params,
		ResultFormatCodes:    binaryFormat,
	})
	front.SendExecute(&pgproto3.Execute{})
	b.steps = append(b.steps, step{statement: s})
}

// call sends a Call.
func (e *encoder) call(front *pgproto3.Frontend, b *batch, op *Op) {
	front.SendBind(&pgproto3.Bind{PreparedStatement: e.prepare(front, b, op.Call), Parameters: op.Params})
	front.SendExecute(&pgproto3.Execute{})
	b.steps = append(b.steps, step{op.Call, op})
}

// prepare makes a statement known to the session at its first use, in the same round trip, and returns its name there.
func (e *encoder) prepare(front *pgproto3.Frontend, b *batch, s *Statement) string {
	switch {
	case e.pooled:
		front.SendParse(&pgproto3.Parse{Query: s.SQL, ParameterOIDs: s.params})
		return ""
	case !e.prepared[s]:
		front.SendClose(&pgproto3.Close{ObjectType: 'S', Name: s.Name}) // a failed batch may have prepared it
		front.SendParse(&pgproto3.Parse{Name: s.Name, Query: s.SQL, ParameterOIDs: s.params})
		e.prepared[s] = true
		b.parsed = append(b.parsed, s)
	}
	return s.Name
}

// forget makes the statements that a failed batch may or may not have prepared be prepared anew.
func (e *encoder) forget(b *batch) {
	for _, s := range b.parsed {
		delete(e.prepared, s)
	}
}

// arrays encodes the operations as three arrays in PostgreSQL's binary form.
func (e *encoder) arrays(ops []*Op) {
	e.keys = arrayHeader(e.keys[:0], pgtype.Int8OID, len(ops))
	e.gates = arrayHeader(e.gates[:0], pgtype.Int8OID, len(ops))
	e.codes = arrayHeader(e.codes[:0], pgtype.Int2OID, len(ops))
	for _, op := range ops {
		e.keys = binary.BigEndian.AppendUint32(e.keys, 8)
		e.keys = binary.BigEndian.AppendUint64(e.keys, uint64(op.Key.ID)) //nolint:gosec // the bits are the number
		e.gates = binary.BigEndian.AppendUint32(e.gates, 8)
		e.gates = binary.BigEndian.AppendUint64(e.gates, uint64(op.Key.Gate())) //nolint:gosec // the bits are the number
		e.codes = binary.BigEndian.AppendUint32(e.codes, 2)
		e.codes = binary.BigEndian.AppendUint16(e.codes, op.code())
	}
}

// arrayHeader starts a one-dimensional array without NULLs, counted from 1.
func arrayHeader(buf []byte, element uint32, length int) []byte {
	buf = binary.BigEndian.AppendUint32(buf, 1)
	buf = binary.BigEndian.AppendUint32(buf, 0)
	buf = binary.BigEndian.AppendUint32(buf, element)
	buf = binary.BigEndian.AppendUint32(buf, uint32(length)) //nolint:gosec // at most maxBatch
	return binary.BigEndian.AppendUint32(buf, 1)
}

const arrayHeaderLength = 20

var errProtocol = errors.New("the server's answer does not fit the statement sent")

// row takes one row of the current statement's result.
func (b *batch) row(values [][]byte) error {
	if b.step >= len(b.steps) {
		return errProtocol
	}
	if op := b.steps[b.step].call; op != nil {
		op.Rows = append(op.Rows, copyRow(values))
		return nil
	}
	if len(values) != 1 {
		return errProtocol
	}
	value := values[0]
	switch s := b.steps[b.step].statement; {
	case s == &stmtMany:
		return b.many(value)
	case value == nil && s.tries():
		b.granted = append(b.granted, false)
	case (s == &stmtUnlock || s == &stmtUnlockShared || s == &stmtPing) && len(value) == 1:
		if s == &stmtPing {
			b.standby = value[0] != 0
		} else {
			b.granted = append(b.granted, value[0] != 0)
		}
	case len(value) == 8:
		b.number(s, int64(binary.BigEndian.Uint64(value))) //nolint:gosec // the bits are the number
	default:
		return errProtocol
	}
	return nil
}

// copyRow copies what is only valid until the next message.
func copyRow(values [][]byte) [][]byte {
	row := make([][]byte, len(values))
	for i, value := range values {
		row[i] = bytes.Clone(value)
	}
	return row
}

// number takes a bigint: the first token of a draw, or a count.
func (b *batch) number(s *Statement, n int64) {
	switch {
	case s.tries():
		b.granted = append(b.granted, true)
		b.draws = append(b.draws, n)
	case s == &stmtDraw:
		b.draws = append(b.draws, n)
	case s == &stmtLook:
		b.count = n
	}
}

// many takes the array of yes and no that answers stmtMany.
func (b *batch) many(value []byte) error {
	const element = 5 // four bytes of length, one of truth
	if len(value) != arrayHeaderLength+element*len(b.locks) {
		return errProtocol
	}
	for i := range b.locks {
		b.granted = append(b.granted, value[arrayHeaderLength+element*i+element-1] != 0)
	}
	return nil
}
