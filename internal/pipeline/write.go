package pipeline

import (
	"github.com/jackc/pgx/v5/pgproto3"
)

// Statement is a statement that a pipeline sends, prepared at its first use in a session.
type Statement struct {
	Name, SQL string
	Params    []uint32 // the types of its parameters; if it is nil the server finds them out
}

// Writer writes the statements of a round trip.
type Writer struct {
	front    *pgproto3.Frontend
	pooled   bool // nothing stays prepared
	relayed  bool // answers may be somebody else's
	prepared map[*Statement]bool

	sinks  []Sink       // of what was sent, in order
	parsed []*Statement // prepared in this round trip
}

var binaryFormat = []int16{1}

// Send sends a statement with parameters and results in binary form.
func (w *Writer) Send(s *Statement, sink Sink, params ...[]byte) {
	w.front.SendBind(&pgproto3.Bind{
		PreparedStatement:    w.prepare(s),
		ParameterFormatCodes: binaryFormat,
		Parameters:           params,
		ResultFormatCodes:    binaryFormat,
	})
	w.front.SendExecute(&pgproto3.Execute{})
	w.sinks = append(w.sinks, sink)
}

// SendText sends a statement with parameters and results as text; nil is NULL.
func (w *Writer) SendText(s *Statement, sink Sink, params [][]byte) {
	w.front.SendBind(&pgproto3.Bind{PreparedStatement: w.prepare(s), Parameters: params})
	w.front.SendExecute(&pgproto3.Execute{})
	w.sinks = append(w.sinks, sink)
}

// prepare makes a statement known to the session at its first use, in the same round trip, and returns its name there.
func (w *Writer) prepare(s *Statement) string {
	switch {
	case w.pooled:
		w.front.SendParse(&pgproto3.Parse{Query: s.SQL, ParameterOIDs: s.Params})
		return ""
	case !w.prepared[s]:
		w.front.SendClose(&pgproto3.Close{ObjectType: 'S', Name: s.Name}) // a failed round trip may have prepared it
		w.front.SendParse(&pgproto3.Parse{Name: s.Name, Query: s.SQL, ParameterOIDs: s.Params})
		w.prepared[s] = true
		w.parsed = append(w.parsed, s)
	}
	return s.Name
}

// forget makes statements that a failed round trip may or may not have prepared be prepared anew.
func (w *Writer) forget(parsed []*Statement) {
	for _, s := range parsed {
		delete(w.prepared, s)
	}
}
