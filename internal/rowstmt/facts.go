package rowstmt

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/record"
	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// Facts are what is looked up about a table before it is used for the first time in this process. They are known
// by the table's name alone, so they may be those of another table of the name: in another database, behind another
// search_path, or before a migration. So they only choose the way to do a thing and the spelling of columns; what is
// refused because of them is looked up again first.
type Facts struct {
	// Moving reports that rows may move to another partition, or that it is not known.
	Moving bool
	// foreign names the foreign tables among the table and its partitions; "" for none.
	foreign string

	columns []string
	records sync.Map // *record.Record by reflect.Type
}

// knownTables keeps facts by the quoted name.
var knownTables sqltext.Cache[*Facts]

// The names of catalogs and operators are qualified, since the search_path is the caller's. No lock on the table is
// needed for these, so they cannot be made to wait.
const sqlTableFacts = `
WITH RECURSIVE pgbaton_tree AS (
    SELECT pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid AS oid
    UNION
    SELECT i.inhrelid FROM pgbaton_tree t JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) t.oid)
SELECT c.relispartition OR c.relkind OPERATOR(pg_catalog.=) ANY ('{p,v}'::"char"[]),
    coalesce((
        SELECT pg_catalog.string_agg(f.oid::pg_catalog.regclass::pg_catalog.text, ', ')
        FROM pgbaton_tree t JOIN pg_catalog.pg_class f ON f.oid OPERATOR(pg_catalog.=) t.oid
        WHERE f.relkind OPERATOR(pg_catalog.=) 'f'::"char"), ''),
    coalesce((
        SELECT pg_catalog.json_agg(a.attname ORDER BY a.attnum)::pg_catalog.text
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid OPERATOR(pg_catalog.=) c.oid AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped), '[]')
FROM pg_catalog.pg_class c
WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass($1::pg_catalog.text)::pg_catalog.oid`

// FactsOf returns the facts of a table that is given by its quoted name. One that does not exist has none: the
// statement that needs it says so better.
func FactsOf(ctx context.Context, q Querier, table string) (*Facts, error) {
	var buffer [128]byte
	if facts, ok := knownTables.Get(sqltext.AppendKey(buffer[:0], table)); ok {
		return facts, nil
	}
	return lookUpFacts(ctx, q, table)
}

func lookUpFacts(ctx context.Context, q Querier, table string) (*Facts, error) {
	facts := &Facts{}
	var columns string
	found, err := QueryRow(ctx, q, []any{&facts.Moving, &facts.foreign, &columns}, sqlTableFacts, table)
	if err != nil || !found {
		return facts, err
	}
	if err := json.Unmarshal([]byte(columns), &facts.columns); err != nil {
		return nil, fmt.Errorf("read the table's columns: %w", err)
	}
	knownTables.Put(sqltext.AppendKey(nil, table), facts)
	return facts, nil
}

// Forget lets a table be looked up again after an error that says that it is not as it was.
func Forget(table string, err error) {
	if pgerr.Class(err) == pgerr.SyntaxOrAccess || pgerr.Code(err) == pgerr.SerializationFailure || pgerr.StalePlan(err) {
		knownTables.Delete(sqltext.AppendKey(nil, table))
	}
}

// Fit returns the record with the table's own spelling of its columns.
func (f *Facts) Fit(r *record.Record) (*record.Record, error) {
	if fitted, ok := f.records.Load(r.Type()); ok && r.IsStruct() {
		return fitted.(*record.Record), nil
	}
	fitted, err := r.For(f.columns)
	if err == nil && r.IsStruct() {
		f.records.Store(r.Type(), fitted)
	}
	return fitted, err
}

// RefuseForeign returns an error if a promise would be broken because the table, or a partition of it, is on
// another server. A wrapper does not pass SKIP LOCKED or a time limit on, or does not lock at all.
func (f *Facts) RefuseForeign(ctx context.Context, q Querier, table, promise string) error {
	if f.foreign == "" {
		return nil
	}
	fresh, err := lookUpFacts(ctx, q, table)
	if err != nil || fresh.foreign == "" {
		return err
	}
	return fmt.Errorf("foreign table %s: %s cannot be kept on another server: lock there", fresh.foreign, promise)
}
