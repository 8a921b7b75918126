// Package record maps the rows of a table to Go values by pgx's rules for structs.
package record

import (
	"database/sql"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"unicode"

	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// Record says which columns a Go type wants and where they go.
type Record struct {
	// Columns are the names as they are in the database.
	Columns []string
	// Select is the quoted select list.
	Select string

	typ   reflect.Type
	paths [][]int // of the fields, in the order of Columns; nil for a scalar
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
	seen := map[string]bool{}
	for _, column := range r.Columns {
		if err := sqltext.CheckName(column); err != nil {
			return nil, fmt.Errorf("db tag in %v: %w", typ, err)
		}
		if seen[column] {
			return nil, fmt.Errorf("%v has two fields for column %s", typ, sqltext.Quote(column))
		}
		seen[column] = true
	}
	r.Select = sqltext.QuoteList(r.Columns)
	structs.Store(typ, r)
	return r, nil
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
		if tag == "" {
			tag = snakeCase(field.Name)
		}
		r.Columns = append(r.Columns, tag)
		r.paths = append(r.paths, fieldPath)
	}
	return nil
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

// Changed are the columns in which two values of the record's type differ, with b's values.
func (r *Record) Changed(a, b any) map[string]any {
	changed := map[string]any{}
	va, vb := reflect.ValueOf(a).Elem(), reflect.ValueOf(b).Elem()
	for i, column := range r.Columns {
		fa, fb := va, vb
		if r.paths != nil {
			fa, fb = va.FieldByIndex(r.paths[i]), vb.FieldByIndex(r.paths[i])
		}
		if !reflect.DeepEqual(fa.Interface(), fb.Interface()) {
			changed[column] = fb.Interface()
		}
	}
	return changed
}

// String names the type for errors.
func (r *Record) String() string {
	return r.typ.String()
}

// snakeCase turns UserID into user_id. It is one of the spellings that pgx takes for the field.
func snakeCase(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		startsWord := i > 0 && unicode.IsUpper(r) && runes[i-1] != '_' &&
			(!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]))
		if startsWord {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
