// Package record maps the rows of a table to Go values by pgx's rules for structs.
package record

import (
	"database/sql"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// Record reports which columns a Go type wants and where they go.
type Record struct {
	// Columns are the names as they are in the database.
	Columns []string
	// Select is the quoted select list.
	Select string

	typ    reflect.Type
	paths  [][]int // of the fields, in the order of Columns; nil for a scalar
	fields []field // in the same order
}

// field reports how a field names its column.
type field struct {
	name   string // of the field, or in its db tag
	tagged bool
}

// Scalar is the record of a type that takes one column whole.
func Scalar(typ reflect.Type, column string) (*Record, error) {
	if err := sqltext.CheckName(column); err != nil {
		return nil, fmt.Errorf("column: %w", err)
	}
	return &Record{Columns: []string{column}, Select: sqltext.Quote(column), typ: typ}, nil
}

// structs caches the records of struct types, *Record by reflect.Type.
var structs sync.Map

// Struct is the record of a struct type: a column for each exported field, embedded structs flattened. A
// field's column is its db tag or, without one, its name in snake case; the tag "-" leaves a field out.
func Struct(typ reflect.Type) (*Record, error) {
	if cached, ok := structs.Load(typ); ok {
		return cached.(*Record), nil
	}
	if typ.Kind() != reflect.Struct || reflect.PointerTo(typ).Implements(reflect.TypeFor[sql.Scanner]()) {
		return nil, fmt.Errorf("%v is not a struct of columns: say which column it takes", typ)
	}
	r := &Record{typ: typ, paths: [][]int{}}
	if err := r.addFields(typ, nil); err != nil {
		return nil, err
	}
	if len(r.Columns) == 0 && typ.NumField() > 0 {
		return nil, fmt.Errorf("%v has no exported fields: say which column it takes", typ)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	r.Select = sqltext.QuoteList(r.Columns)
	structs.Store(typ, r)
	return r, nil
}

// check reports what is wrong with the columns.
func (r *Record) check() error {
	seen := map[string]bool{}
	for _, column := range r.Columns {
		if err := sqltext.CheckName(column); err != nil {
			return fmt.Errorf("db tag in %v: %w", r.typ, err)
		}
		if seen[column] {
			return fmt.Errorf("%v has two fields for column %s", r.typ, sqltext.Quote(column))
		}
		seen[column] = true
	}
	return nil
}

// For is the record for a table with the given columns. A field takes the column that pgx would scan into it: without a
// db tag the one with its name, whatever the case and the underscores; with one the one of that name, in the same case
// if there is such a one. Among several, the name in snake case is preferred, then the table's order. A field
// without a column keeps its name, so that the server can say that there is no such column.
func (r *Record) For(columns []string) (*Record, error) {
	if r.paths == nil {
		return r, nil
	}
	fitted := *r
	fitted.Columns = make([]string, len(r.Columns))
	for i, f := range r.fields {
		fitted.Columns[i] = f.columnIn(columns, r.Columns[i])
	}
	if err := fitted.check(); err != nil {
		return nil, err
	}
	fitted.Select = sqltext.QuoteList(fitted.Columns)
	return &fitted, nil
}

func (f field) columnIn(columns []string, preferred string) string {
	if slices.Contains(columns, preferred) {
		return preferred
	}
	for _, column := range columns {
		if f.tagged && strings.EqualFold(column, f.name) ||
			!f.tagged && strings.EqualFold(strings.ReplaceAll(column, "_", ""), strings.ReplaceAll(f.name, "_", "")) {
			return column
		}
	}
	return preferred
}

func (r *Record) addFields(typ reflect.Type, path []int) error {
	for i := range typ.NumField() {
		field := typ.Field(i)
		if !field.IsExported() && !field.Anonymous {
			continue
		}
		tag, _, _ := strings.Cut(field.Tag.Get("db"), ",")
		if tag == "-" {
			continue
		}
		fieldPath := append(append([]int(nil), path...), i)
		if field.Anonymous && field.Type.Kind() == reflect.Struct {
			if err := r.addFields(field.Type, fieldPath); err != nil {
				return err
			}
			continue
		}
		if field.Anonymous && field.Type.Kind() == reflect.Pointer && tag == "" {
			return fmt.Errorf("%v embeds a pointer, %v: embed the struct, or give it the db tag \"-\"", typ, field.Type)
		}
		if !field.IsExported() {
			continue
		}
		named := namedBy(field.Name, tag)
		if tag == "" {
			tag = snakeCase(field.Name)
		}
		r.Columns = append(r.Columns, tag)
		r.fields = append(r.fields, named)
		r.paths = append(r.paths, fieldPath)
	}
	return nil
}

func namedBy(name, tag string) field {
	if tag == "" {
		return field{name: name}
	}
	return field{name: tag, tagged: true}
}

// Index is the position of a column, or -1.
func (r *Record) Index(column string) int {
	for i, c := range r.Columns {
		if c == column {
			return i
		}
	}
	return -1
}

// Dests are the places in *into, a pointer to the record's type, for the columns of a row, in their order.
func (r *Record) Dests(into any) []any {
	if r.paths == nil {
		return []any{into}
	}
	value := reflect.ValueOf(into).Elem()
	dests := make([]any, len(r.paths), len(r.paths)+1)
	for i, path := range r.paths {
		dests[i] = value.FieldByIndex(path).Addr().Interface()
	}
	return dests
}

// Changed are the columns in which another value would be sent for b than for a, with b's values.
func (r *Record) Changed(a, b any) map[string]any {
	changed := map[string]any{}
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i, column := range r.Columns {
		fa, fb := va, vb
		if r.paths != nil {
			fa, fb = va.FieldByIndex(r.paths[i]), vb.FieldByIndex(r.paths[i])
		}
		if !same(fa, fb, 0) {
			changed[column] = fb.Interface()
		}
	}
	return changed
}

// Type is the Go type that is read.
func (r *Record) Type() reflect.Type { return r.typ }

// IsStruct reports whether the type's fields are columns, not the type whole.
func (r *Record) IsStruct() bool { return r.paths != nil }

// String names the type for errors.
func (r *Record) String() string {
	return r.typ.String()
}

// snakeCase turns UserID into user_id, and UserIDs into user_ids. It is one of the spellings that pgx takes for the
// field.
func snakeCase(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		startsWord := i > 0 && unicode.IsUpper(r) && runes[i-1] != '_' &&
			(!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]) && !isPlural(runes, i+1))
		if startsWord {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// isPlural reports whether the letter at i is the s that makes several of an abbreviation, as in UserIDs or URLsByID.
func isPlural(runes []rune, i int) bool {
	return runes[i] == 's' && (i+1 == len(runes) || !unicode.IsLower(runes[i+1]))
}
