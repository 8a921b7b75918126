package command

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

// The prefixes of keys that are not, or not only, names.
const (
	prefixName = "name:"
	prefixID   = "id:"
	prefixPair = "pair:"
)

// parseKey reads a key as people write it.
func parseKey(text string) (pgbaton.Key, error) {
	if name, ok := strings.CutPrefix(text, prefixName); ok {
		return pgbaton.Name(name), nil
	}
	if number, ok := strings.CutPrefix(text, prefixID); ok {
		id, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return pgbaton.Key{}, cli.Usagef("%q is no bigint key such as id:42; a name that begins so is written name:%[1]s", text)
		}
		return pgbaton.ID(id), nil
	}
	if numbers, ok := strings.CutPrefix(text, prefixPair); ok {
		first, second, _ := strings.Cut(numbers, ",")
		a, err1 := strconv.ParseInt(first, 10, 32)
		b, err2 := strconv.ParseInt(second, 10, 32)
		if err1 != nil || err2 != nil {
			return pgbaton.Key{}, cli.Usagef("%q is no pair of integers such as pair:1,2; a name that begins so is written name:%[1]s", text)
		}
		return pgbaton.Pair(int32(a), int32(b)), nil
	}
	return pgbaton.Name(text), nil
}

// parseName reads a key that must be a name, since it has a row.
func parseName(text, of string) (string, error) {
	key, err := parseKey(text)
	if err != nil {
		return "", err
	}
	name, _, _ := key.Parts()
	if name == "" {
		return "", cli.Usagef("%s needs a name, not %q", of, text)
	}
	return name, nil
}

// ownName is what a client is called that has no name: as the library has it.
func ownName() string {
	host, _ := os.Hostname() // without one the number has to do
	return fmt.Sprintf("%s:%d", host, os.Getpid())
}

// redacting is a writer of lines that may have what nobody should read.
type redacting struct{ io.Writer }

func (r redacting) Write(p []byte) (int, error) {
	if _, err := io.WriteString(r.Writer, redact(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
