package sqltext

import (
	"fmt"
	"slices"
	"strings"
)

// KeyColumns are the columns of a key in their canonical order, which is also the order in which rows are
// locked: callers that name the same columns lock in the same order.
func KeyColumns(key map[string]any) ([]string, error) {
	if len(key) == 0 {
		return nil, fmt.Errorf("key has no columns")
	}
	columns := make([]string, 0, len(key))
	for column, value := range key {
		if err := CheckName(column); err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		if IsNull(value) {
			return nil, fmt.Errorf("key: column %s is NULL, which equals nothing", Quote(column))
		}
		columns = append(columns, column)
	}
	slices.Sort(columns)
	return columns, nil
}

// KeyEquals is the condition that a row has the key.
func KeyEquals(args *Args, columns []string, key map[string]any) (string, error) {
	first := len(args.values) + 1
	if err := args.AddAll(columns, key); err != nil {
		return "", err
	}
	return Equations(columns, first, " AND "), nil
}

// Equations are column = $n for each of the columns, numbered upwards from first.
func Equations(columns []string, first int, separator string) string {
	text := ""
	for i, column := range columns {
		if i > 0 {
			text += separator
		}
		text += Quote(column) + " = " + Placeholder(first+i)
	}
	return text
}

// KeyIn is the condition that a row has one of the keys, which must all have the given columns. The list is
// filled up to a power of two with its last key, so that few different statements are prepared.
func KeyIn[M ~map[string]any](args *Args, columns []string, keys []M) (string, error) {
	var b strings.Builder
	b.WriteString("(")
	b.WriteString(QuoteList(columns))
	b.WriteString(") IN (")
	last := ""
	for i, key := range keys {
		tuple, err := keyTuple(args, columns, key)
		if err != nil {
			return "", fmt.Errorf("key %d: %w", i, err)
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(tuple)
		last = tuple
	}
	for i := len(keys); i&(i-1) != 0; i++ {
		b.WriteString(", ")
		b.WriteString(last)
	}
	b.WriteString(")")
	return b.String(), nil
}

func keyTuple(args *Args, columns []string, key map[string]any) (string, error) {
	if len(key) != len(columns) {
		return "", fmt.Errorf("has %d columns, the first key has %d", len(key), len(columns))
	}
	placeholders := make([]string, len(columns))
	for i, column := range columns {
		value, ok := key[column]
		switch {
		case !ok:
			return "", fmt.Errorf("lacks column %s", Quote(column))
		case IsNull(value):
			return "", fmt.Errorf("column %s is NULL, which equals nothing", Quote(column))
		}
		placeholder, err := args.Add(value)
		if err != nil {
			return "", fmt.Errorf("column %s: %w", Quote(column), err)
		}
		placeholders[i] = placeholder
	}
	return "(" + strings.Join(placeholders, ", ") + ")", nil
}

// SetColumns are the columns of a SET clause in the order of their names.
func SetColumns(set map[string]any) ([]string, error) {
	columns := make([]string, 0, len(set))
	for column := range set {
		if err := CheckName(column); err != nil {
			return nil, fmt.Errorf("set: %w", err)
		}
		columns = append(columns, column)
	}
	slices.Sort(columns)
	return columns, nil
}

// QuoteList is a list of quoted names.
func QuoteList(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = Quote(name)
	}
	return strings.Join(quoted, ", ")
}
