package sessionengine

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// round writes requests as statements, and takes their rows. A request that is alone, on a bigint key, has a statement of its
// own; of others, those about keys share stmtMany, and one statement draws the tokens for all.
type round struct {
	anchor *anchor

	carried []*engine.Request // by stmtMany, in its order, or alone
	wanted  int               // draws
	granted []bool            // of carried
	draws   []int64
	joins   bool

	keys, gates, codes []byte
	number             [16]byte // space for two
	params             [2][]byte
}

var _ pipeline.Round[*engine.Request] = (*round)(nil)

// Encode implements [pipeline.Round].
func (r *round) Encode(w *pipeline.Writer, requests []*engine.Request) {
	r.carried, r.granted, r.draws = r.carried[:0], r.granted[:0], r.draws[:0]
	tokens := 0
	for _, request := range requests {
		switch request.Verb {
		case engine.Draw:
			tokens += request.Want
			continue
		case engine.Acquire:
			tokens += max(request.Want, 1)
		case engine.Release, engine.Yield:
		}
		r.carried = append(r.carried, request)
	}
	r.wanted = (tokens + tokensPerDraw - 1) / tokensPerDraw
	r.joins = !r.anchor.joined.Load() && tokens > 0
	if r.joins {
		id := binary.BigEndian.AppendUint64(nil, uint64(r.anchor.id)) //nolint:gosec // the bits count
		w.Send(&stmtJoin, ignored{}, id, []byte(r.anchor.engine.cfg.Name))
	}
	if s := lone(requests); s != nil && r.wanted <= 1 {
		r.encodeLone(w, s, requests[0])
		return
	}
	if len(r.carried) > 0 {
		r.encodeArrays()
		w.Send(&stmtMany, (*manySink)(r), r.keys, r.gates, r.codes)
	}
	if r.wanted > 0 {
		w.Send(&stmtDraw, (*drawSink)(r), binary.BigEndian.AppendUint32(r.number[:0], uint32(r.wanted))) //nolint:gosec // small
	}
}

// lone returns the statement for a single simple request, else nil.
func lone(requests []*engine.Request) *pipeline.Statement {
	if len(requests) != 1 || requests[0].Key.Pair {
		return nil
	}
	both := [2]*pipeline.Statement{}
	switch request := requests[0]; {
	case request.Verb == engine.Release:
		both = [2]*pipeline.Statement{&stmtUnlock, &stmtUnlockShared}
	case request.Verb == engine.Acquire && request.Manners == engine.Barge:
		both = [2]*pipeline.Statement{&stmtTry, &stmtTryShared}
	case request.Verb == engine.Acquire:
		both = [2]*pipeline.Statement{&stmtPolite, &stmtPoliteShared}
	}
	return both[requests[0].Mode]
}

func (r *round) encodeLone(w *pipeline.Writer, s *pipeline.Statement, request *engine.Request) {
	params := append(r.params[:0], binary.BigEndian.AppendUint64(r.number[:0], uint64(request.Key.ID))) //nolint:gosec // the bits are the number
	if len(s.Params) > 1 {
		params = append(params, binary.BigEndian.AppendUint64(r.number[8:8], uint64(request.Key.Gate()))) //nolint:gosec // the bits are the number
	}
	if request.Verb == engine.Acquire {
		w.Send(s, (*trySink)(r), params...)
		return
	}
	w.Send(s, (*yesSink)(r), params...)
}

// encodeArrays writes the arguments of stmtMany in PostgreSQL's binary form.
func (r *round) encodeArrays() {
	r.keys = arrayHeader(r.keys[:0], pgtype.Int8OID, len(r.carried))
	r.gates = arrayHeader(r.gates[:0], pgtype.Int8OID, len(r.carried))
	r.codes = arrayHeader(r.codes[:0], pgtype.Int2OID, len(r.carried))
	for _, request := range r.carried {
		r.keys = binary.BigEndian.AppendUint32(r.keys, 8)
		r.keys = binary.BigEndian.AppendUint64(r.keys, uint64(request.Key.ID)) //nolint:gosec // the bits are the number
		r.gates = binary.BigEndian.AppendUint32(r.gates, 8)
		r.gates = binary.BigEndian.AppendUint64(r.gates, uint64(request.Key.Gate())) //nolint:gosec // the bits are the number
		r.codes = binary.BigEndian.AppendUint32(r.codes, 2)
		r.codes = binary.BigEndian.AppendUint16(r.codes, code(request))
	}
}

// code returns the request's code for stmtMany.
func code(request *engine.Request) uint16 {
	var code uint16
	switch request.Verb {
	case engine.Acquire:
		code = tryKey
		if request.Manners == engine.Behind {
			code = tryBehind
		}
	case engine.Release:
		code = unlockKey
	case engine.Yield:
		return yieldKey
	case engine.Draw: // is not carried by stmtMany
	}
	if request.Key.Pair {
		code += pairKey
	}
	if request.Mode == advisory.Shared {
		code += sharedKey
	}
	return code
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

// ignored takes rows that nobody wants.
type ignored struct{}

// Row implements [pipeline.Sink].
func (ignored) Row([][]byte) error { return nil }

// trySink takes the answer to a lone try: a token, or NULL.
type trySink round

// Row implements [pipeline.Sink].
func (r *trySink) Row(values [][]byte) error {
	if len(values) == 1 && values[0] == nil {
		r.granted = append(r.granted, false)
		return nil
	}
	r.granted = append(r.granted, true)
	return (*drawSink)(r).Row(values)
}

// yesSink takes the answer to a lone request that is yes or no.
type yesSink round

// Row implements [pipeline.Sink].
func (r *yesSink) Row(values [][]byte) error {
	if len(values) != 1 || len(values[0]) != 1 {
		return pipeline.ErrProtocol
	}
	r.granted = append(r.granted, values[0][0] != 0)
	return nil
}

// manySink takes the array of yes and no that answers stmtMany.
type manySink round

// Row implements [pipeline.Sink].
func (r *manySink) Row(values [][]byte) error {
	const element = 5 // four bytes of length, one of truth
	if len(values) != 1 || len(values[0]) != arrayHeaderLength+element*len(r.carried) {
		return pipeline.ErrProtocol
	}
	for i := range r.carried {
		r.granted = append(r.granted, values[0][arrayHeaderLength+element*i+element-1] != 0)
	}
	return nil
}

// drawSink takes the tokens that were drawn.
type drawSink round

// Row implements [pipeline.Sink].
func (r *drawSink) Row(values [][]byte) error {
	if len(values) != 1 || len(values[0]) != 8 {
		return pipeline.ErrProtocol
	}
	token := int64(binary.BigEndian.Uint64(values[0])) //nolint:gosec // the bits are the number
	r.draws = append(r.draws, token)
	return r.anchor.draw(token)
}

// Check implements [pipeline.Round].
func (r *round) Check() error {
	deniedAlone := len(r.carried) == 1 && len(r.granted) == 1 && !r.granted[0] // then nothing was drawn
	if len(r.granted) != len(r.carried) || (len(r.draws) != r.wanted && !deniedAlone) {
		return pipeline.ErrProtocol
	}
	return nil
}

// Complete implements [pipeline.Round].
func (r *round) Complete(requests []*engine.Request, _ time.Time) {
	if r.joins {
		r.anchor.joined.Store(true)
	}
	for i, request := range r.carried {
		request.OK = r.granted[i]
	}
	deal := dealer{draws: r.draws}
	var last *engine.Request
	for _, request := range requests {
		switch {
		case request.Verb == engine.Draw:
			request.OK = true
		case request.Verb != engine.Acquire || !request.OK:
			continue
		}
		request.Tokens = deal.tokens(max(request.Want, 1))
		last = request
	}
	if last != nil {
		deal.extend(&last.Tokens)
	}
	clear(r.carried)
	r.anchor.engine.manager.Answer(requests)
}

// Refuse implements [pipeline.Round]. All that is to be given back was given back: see Repair.
func (r *round) Refuse(requests []*engine.Request, _ pipeline.Sink, err *pgconn.PgError) {
	refusal := pipeline.Refusal(err)
	for _, request := range requests {
		if request.Verb == engine.Release {
			request.OK = true
		} else {
			request.Err, request.Retry = refusal, errors.Is(refusal, pipeline.ErrRetry)
		}
	}
	r.anchor.engine.manager.Answer(requests)
}
