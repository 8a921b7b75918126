package emulation

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
)

// Codes that begin a connection in place of the protocol's version.
const (
	cancelCode = 80877102
	tlsCode    = 80877103
	gssCode    = 80877104
)

const (
	leastHead  = 4       // of a length, which counts itself
	mostLength = 1 << 28 // of a message; more is a mistake of the proxy's
)

// readOpening reads a connection's first message, which has no type, with its code.
func readOpening(r *bufio.Reader) (message []byte, code uint32, err error) {
	head := make([]byte, 2*leastHead)
	if _, err = io.ReadFull(r, head); err != nil {
		return nil, 0, err
	}
	length := binary.BigEndian.Uint32(head)
	if length < 2*leastHead || length > mostLength {
		return nil, 0, fmt.Errorf("a first message of %d bytes", length)
	}
	message = slices.Concat(head, make([]byte, length-2*leastHead))
	_, err = io.ReadFull(r, message[2*leastHead:])
	return message, binary.BigEndian.Uint32(head[leastHead:]), err
}

// read reads a message: its type, and the whole of it.
func read(r *bufio.Reader) (kind byte, message []byte, err error) {
	head := make([]byte, 1+leastHead)
	if _, err = io.ReadFull(r, head); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length < leastHead || length > mostLength {
		return 0, nil, fmt.Errorf("a message %q of %d bytes", head[0], length)
	}
	message = slices.Concat(head, make([]byte, length-leastHead))
	_, err = io.ReadFull(r, message[1+leastHead:])
	return head[0], message, err
}

// body returns what a message has behind its length.
func body(message []byte) []byte { return message[1+leastHead:] }

// message makes one.
func message(kind byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	m := binary.BigEndian.AppendUint32([]byte{kind}, uint32(leastHead+len(content))) //nolint:gosec // a short text
	return append(m, content...)
}

// text cuts a text off that ends with a zero byte.
func text(content []byte) (first string, rest []byte) {
	before, after, _ := bytes.Cut(content, []byte{0})
	return string(before), after
}

func terminated(s string) []byte { return append([]byte(s), 0) }

const (
	marker = "pgbaton_emulated_conflict"
	// failure is a statement that fails, in whatever transaction.
	failure = "SELECT pg_catalog." + marker + "()"
	// statementName is of no prepared statement: one that cannot be analyzed is not kept.
	statementName = marker
)

func query(sql string) []byte { return message('Q', terminated(sql)) }

// failingParse prepares the failing statement, which ends the batch.
func failingParse() []byte {
	return message('P', terminated(statementName), terminated(failure), []byte{0, 0})
}

// conflict is the error that the client gets. It is worded as that of PostgreSQL.
func conflict() []byte {
	var fields [][]byte
	for _, field := range []string{
		"SERROR", "VERROR", "C40001", "Mcould not serialize access due to concurrent update (emulated)",
		"HThe transaction might succeed if retried.", "",
	} {
		fields = append(fields, terminated(field))
	}
	return message('E', bytes.Join(fields, nil))
}

// marked reports whether an ErrorResponse is that of the failing statement.
func marked(content []byte) bool {
	for len(content) > 1 {
		var field string
		field, content = text(content)
		if len(field) > 0 && field[0] == 'M' {
			return bytes.Contains([]byte(field), []byte(marker))
		}
	}
	return false
}
