package engine

import "github.com/pgbaton/pgbaton/internal/advisory"

// Verb is what a request wants.
type Verb uint8

const (
	Acquire Verb = iota // hold the key if it is free, and draw tokens; see Manners
	Release             // give the key back
	Draw                // draw tokens for a key that is held
	Yield               // look whether no other process waits for a key that is held
)

// Manners say how an Acquire treats the processes that wait for the key.
//
// Leases: the key's row says who goes first, so Polite and Behind are the same.
type Manners uint8

const (
	Barge  Manners = iota // pass them
	Polite                // let them go first if to know of them costs next to nothing
	Behind                // let them go first
)

// Request is one operation on a key and, once answered, its result.
//
// Leases, by Verb: Acquire takes over a row that is free or has expired, with a token greater than the row's last, and Want − 1 more
// reserved behind it. Release clears the holder where holder and token are the client's. Draw raises the row's last token by Want. Yield
// looks whether it is another one's turn.
type Request struct {
	Verb    Verb
	Manners Manners // of an Acquire
	Mode    advisory.Mode
	Key     advisory.Key
	Name    string // of the key, for people; "" if it has none
	Want    int    // tokens to draw, of an Acquire (at least one is) or a Draw
	Owner   any    // the manager's, handed back with the answer: what the request was for

	OK     bool   // granted, released, drawn; for Yield: nobody waits
	Tokens Tokens // of an Acquire or a Draw that is OK; there may be fewer than wanted, and more
	Err    error  // the server refused to run it, and nothing has changed; a Release is never refused
	Retry  bool   // Err is of the moment: the request may be submitted again
}

// Reset makes a request to be answered of another one.
func (r *Request) Reset(verb Verb, mode advisory.Mode) {
	*r = Request{Verb: verb, Mode: mode, Key: r.Key, Owner: r.Owner}
}

// Tokens are consecutive fencing tokens for the grants of one key.
type Tokens struct{ next, end int64 }

// TokensFrom returns the tokens from first on, so many.
func TokensFrom(first int64, count int) Tokens { return Tokens{first, first + int64(count)} }

// Next takes the next token; false if there is none left.
func (t *Tokens) Next() (int64, bool) {
	if t.next == t.end {
		return 0, false
	}
	t.next++
	return t.next - 1, true
}

// Extend adds so many behind the last.
func (t *Tokens) Extend(count int) { t.end += int64(count) }
