// Package advisory names what the server locks: keys, modes and the gate at which processes queue for a key.
package advisory

// Mode is how a key is locked. A key has at most one Exclusive holder, or any number of Shared ones.
type Mode uint8

const (
	Exclusive Mode = iota
	Shared
)

// Key is a key of PostgreSQL's advisory locks. The server keeps two spaces apart: one bigint, or a
// pair of int4; a pair is packed into ID with its first half in the upper 32 bits.
type Key struct {
	ID   int64
	Pair bool
}

// Named is a key with what people call it; "" if they do not.
type Named struct {
	Key

	Name string
	Use  Use
}

// Use is what somebody wants a key for. The server does not know it, and locks it for everybody alike.
type Use uint8

const (
	Single Use = iota
	InSet      // with others, as one
	OfRun      // for a run that is due once
)

// Halves splits the ID of a pair into its two numbers.
func (k Key) Halves() (int32, int32) {
	return int32(k.ID >> 32), int32(k.ID) //nolint:gosec // the truncation is the point
}

// The masks turn a key into the key of its gate. A mask is a bijection, so two keys of one space never
// share a gate; should a caller's own key equal some gate, waiting gets slower and nothing else.
// The SQL functions pgbaton.gate carry the same numbers.
const (
	gateMask     int64 = 0x7067_6261_746f_6e31 // "pgbaton1"
	pairGateMask int64 = 0x7067_6261_746f_6e32 // "pgbaton2"
)

// Gate is the bigint key at which the processes that want k queue, first in, first out.
func (k Key) Gate() int64 {
	if k.Pair {
		return k.ID ^ pairGateMask
	}
	return k.ID ^ gateMask
}
