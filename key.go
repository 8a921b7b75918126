package pgbaton

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/pgbaton/pgbaton/internal/advisory"
)

// maxNameLength bounds a name in bytes. Names appear in errors, logs and tables; a longer one is
// nearly always a payload given by mistake.
const maxNameLength = 512

// Key is what is locked. It is a value: make one with [Name], [ID] or [Pair], compare it with ==.
// The zero Key is invalid.
//
// Keys are global to a database, whatever the schema or role: services that share a database should prefix
// their names.
type Key struct {
	name string
	kind keyKind
	key  advisory.Key
}

type keyKind uint8

const (
	keyInvalid keyKind = iota
	keyName
	keyID
	keyPair
)

// Name is the key of a name, such as "invoice/42". It is the first eight bytes, big-endian, of the
// SHA-256 of "pgbaton:" and the name; pgbaton.key(text) computes the same in SQL. Some vectors:
//
//	"a"           2167400190551539809
//	"invoice/42" -2627838530059473662
//	"größe"       7940386736104268567
//
// A name is 1 to 512 bytes of UTF-8 without NUL; another makes every call with the key fail. Names that begin with
// "pgbaton/" are the library's own: a client that holds one blocks a semaphore or a leader.
func Name(name string) Key {
	sum := sha256.Sum256([]byte("pgbaton:" + name))
	id := int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // the bits are the key
	return Key{name: name, kind: keyName, key: advisory.Key{ID: id}}
}

// ID is a bigint key of PostgreSQL's advisory locks as it is, to share it with other programs.
func ID(id int64) Key {
	return Key{kind: keyID, key: advisory.Key{ID: id}}
}

// Pair is a key of two int4, a space of its own in PostgreSQL, as it is.
func Pair(a, b int32) Key {
	return Key{kind: keyPair, key: advisory.Key{ID: int64(a)<<32 | int64(uint32(b)), Pair: true}} //nolint:gosec // the bits are the key
}

// String names the key for people: the quoted name, id:N or pair:A,B.
func (k Key) String() string {
	switch k.kind {
	case keyName:
		return fmt.Sprintf("%q", k.name)
	case keyID:
		return fmt.Sprintf("id:%d", k.key.ID)
	case keyPair:
		a, b := k.key.Halves()
		return fmt.Sprintf("pair:%d,%d", a, b)
	default:
		return "invalid key"
	}
}

// Parts gives back what the key was made of: the name of [Name], else "", and its number, which for [ID] is the bigint
// itself. With pair it is a [Pair]'s, int32(id>>32) and int32(id). The zero Key has no name and the number 0.
func (k Key) Parts() (name string, id int64, pair bool) { return k.name, k.key.ID, k.key.Pair }

// what names the lock of a key in errors.
func (k Key) what() string {
	if name, ok := strings.CutPrefix(k.name, leaderPrefix); ok {
		return fmt.Sprintf("term of %q", name)
	}
	return "lock " + k.String()
}

// validate returns what is wrong with a key, for people.
func (k Key) validate() error {
	switch k.kind {
	case keyInvalid:
		return fmt.Errorf("the zero Key is not a key: make one with Name, ID or Pair")
	case keyName:
		return validateName("key", k.name, maxNameLength)
	default:
		return nil
	}
}

// validateName returns what is wrong with the name of something, for people.
func validateName(of, name string, most int) error {
	switch {
	case name == "":
		return fmt.Errorf(`%s name "" is empty`, of)
	case len(name) > most:
		return fmt.Errorf("%s name %q… has %d bytes, the most is %d", of, name[:32], len(name), most)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return fmt.Errorf("%s name %q is not UTF-8 without NUL", of, name)
	}
	return nil
}
