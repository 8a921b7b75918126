package sqltext

import (
	"fmt"
	"slices"
	"strconv"
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

// Keys is a FROM item with one row for each of the keys, which must all have the given columns: KeyColumn(0), … are
// the key's values, with the types that the columns have in the table, and KeyNumber is 2 for the first key, 3 for the
// next. (Number 1 has NULL in all columns: it only brings the types.) The list is filled up with NULLs to a power of
// two, so that few different statements are prepared.
func Keys[M ~map[string]any](args *Args, table string, columns []string, keys []M) (string, error) {
	size := 1
	for size < len(keys) {
		size *= 2
	}
	if size*len(columns) > maxArgs {
		size = len(keys)
	}
	for i, key := range keys {
		if len(key) != len(columns) {
			return "", fmt.Errorf("key %d: has %d columns, the first key has %d", i, len(key), len(columns))
		}
	}
	var b strings.Builder
	b.WriteString("ROWS FROM (")
	for c, column := range columns {
		if c > 0 {
			b.WriteString(", ")
		}
		b.WriteString("pg_catalog.unnest(ARRAY[(SELECT " + Quote(column) + " FROM " + table + " LIMIT 0)")
		for i := range size {
			var value any
			if i < len(keys) {
				var err error
				if value, err = keyValue(keys[i], column); err != nil {
					return "", fmt.Errorf("key %d: %w", i, err)
				}
			}
			placeholder, err := args.Add(value)
			if err != nil {
				return "", fmt.Errorf("column %s: %w", Quote(column), err)
			}
			b.WriteString(", " + placeholder)
		}
		b.WriteString("])")
	}
	b.WriteString(") WITH ORDINALITY AS pgbaton_keys (")
	for c := range columns {
		b.WriteString("c" + strconv.Itoa(c) + ", ")
	}
	b.WriteString("n)")
	return b.String(), nil
}

// KeyNumber is the column of [Keys] that numbers the keys.
const KeyNumber = "pgbaton_keys.n"

// KeyMatches is the condition that a row of the table called alias has the key of a row of [Keys].
func KeyMatches(alias string, columns []string) string {
	conditions := make([]string, len(columns))
	for c, column := range columns {
		conditions[c] = alias + "." + Quote(column) + " = pgbaton_keys.c" + strconv.Itoa(c)
	}
	return strings.Join(conditions, " AND ")
}

func keyValue(key map[string]any, column string) (any, error) {
	value, ok := key[column]
	switch {
	case !ok:
		return nil, fmt.Errorf("lacks column %s", Quote(column))
	case IsNull(value):
		return nil, fmt.Errorf("column %s is NULL, which equals nothing", Quote(column))
	}
	return value, nil
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
	return QuoteListOf("", names)
}

// QuoteListOf is a list of quoted names of columns, each with the prefix, such as "alias.".
func QuoteListOf(prefix string, names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = prefix + Quote(name)
	}
	return strings.Join(quoted, ", ")
}
