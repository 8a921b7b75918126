// Package sqltext builds statements out of the caller's names and values. Names are quoted and values become
// parameters, so that neither can change what a statement does.
package sqltext

import (
	"database/sql/driver"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// maxArgs is the most parameters that PostgreSQL's protocol can count.
const maxArgs = 65535

// maxName is the most bytes that PostgreSQL keeps of a name (NAMEDATALEN - 1). It cuts off the rest, and a shorter
// name may be that of something else.
const maxName = 63

// CheckName reports what is wrong with one part of an identifier. Sanitize drops NUL bytes, so a name with one
// would silently become another name.
func CheckName(name string) error {
	switch {
	case len(name) > maxName:
		return fmt.Errorf("name %q has %d bytes: PostgreSQL would cut it off after %d", name, len(name), maxName)
	case name == "":
		return fmt.Errorf(`name "" is empty`)
	case strings.ContainsRune(name, 0) || !utf8.ValidString(name):
		return fmt.Errorf("name %q is not UTF-8 without NUL", name)
	}
	return nil
}

// Quote is the quoted form of one name.
func Quote(name string) string {
	if strings.IndexByte(name, '"') < 0 && strings.IndexByte(name, 0) < 0 {
		return `"` + name + `"` // what Sanitize does, without its three allocations
	}
	return pgx.Identifier{name}.Sanitize()
}

// Table is the quoted form of a table's name.
func Table(table pgx.Identifier) (string, error) {
	if len(table) == 0 || len(table) > 3 {
		return "", fmt.Errorf("table %q has %d parts: give the table, or schema and table", []string(table), len(table))
	}
	for _, part := range table {
		if err := CheckName(part); err != nil {
			return "", fmt.Errorf("table %q: %w", []string(table), err)
		}
	}
	if len(table) == 1 {
		return Quote(table[0]), nil
	}
	return table.Sanitize(), nil
}

// Args collects a statement's parameters. The zero Args is ready to use.
type Args struct {
	values []any
}

// Values are the parameters in the order of their numbers.
func (a *Args) Values() []any {
	return a.values
}

// Add makes value the next parameter and returns its placeholder. Values that pgx would take for options of
// the query, some of which rewrite it, are refused.
func (a *Args) Add(value any) (string, error) {
	switch value.(type) {
	case pgx.QueryRewriter, pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
		return "", fmt.Errorf("a %T is an option of a query, not a value", value)
	}
	if len(a.values) == maxArgs {
		return "", fmt.Errorf("more than %d values", maxArgs)
	}
	if a.values == nil {
		a.values = make([]any, 0, 4)
	}
	a.values = append(a.values, value)
	return Placeholder(len(a.values)), nil
}

// AddAll makes the columns' values the next parameters, in the order of the columns.
func (a *Args) AddAll(columns []string, values map[string]any) error {
	for _, column := range columns {
		if _, err := a.Add(values[column]); err != nil {
			return fmt.Errorf("column %s: %w", Quote(column), err)
		}
	}
	return nil
}

// Placeholder is the one of the nth parameter, counted from 1.
func Placeholder(n int) string {
	if n < len(placeholders) {
		return placeholders[n]
	}
	return "$" + strconv.Itoa(n)
}

// placeholders are those that nearly every statement gets by with.
var placeholders = [...]string{"", "$1", "$2", "$3", "$4", "$5", "$6", "$7", "$8", "$9"}

// IsNull reports whether value is NULL for the server.
func IsNull(value any) bool {
	if value == nil {
		return true
	}
	switch v := reflect.ValueOf(value); v.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Interface:
		if v.IsNil() {
			return true
		}
	}
	if valuer, ok := value.(driver.Valuer); ok {
		v, err := valuer.Value()
		return err == nil && v == nil
	}
	return false
}

// AtPosition is the token that starts at a position as the server counts it: the quoted identifier there
// with what qualifies it, or "" if there is none.
func AtPosition(statement string, position int) string {
	runes := []rune(statement)
	if position < 1 || position > len(runes) || runes[position-1] != '"' {
		return ""
	}
	rest := runes[position-1:]
	quoted := false
	for i, r := range rest {
		if r == '"' {
			quoted = !quoted
		} else if !quoted && r != '.' {
			return string(rest[:i])
		}
	}
	return string(rest)
}
