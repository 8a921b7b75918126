package migrator

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/migrations"
)

// row is what the version table says.
type row struct {
	table   bool  // it exists
	rows    int64 // how many rows it has; golang-migrate keeps one
	version int64
	dirty   bool
}

func (p place) table() string {
	return pgx.Identifier{p.schema, migrations.VersionTable}.Sanitize()
}

// read reads the version table, if it exists, once nothing can run by it.
func (p place) read(ctx context.Context, tx pgx.Tx) (row, error) {
	oid, err := p.inspect(ctx, tx)
	if err != nil || oid == 0 {
		return row{}, err
	}
	if err := p.hold(ctx, tx, oid, "ACCESS SHARE"); err != nil {
		return row{}, err
	}
	r := row{table: true}
	sqlRead := `SELECT count(*), coalesce(max(version), 0), coalesce(bool_or(dirty), false) FROM ONLY ` + p.table()
	if err := tx.QueryRow(ctx, sqlRead).Scan(&r.rows, &r.version, &r.dirty); err != nil {
		return row{}, fmt.Errorf("read %s: %w", p.table(), err)
	}
	return r, nil
}

// hold locks the table, so that nothing can be attached to it that would run in what comes next, and then looks whether
// something was. ACCESS SHARE keeps away what reading could run, SHARE ROW EXCLUSIVE also triggers and indexes.
func (p place) hold(ctx context.Context, tx pgx.Tx, oid uint32, mode string) error {
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY `+p.table()+` IN `+mode+` MODE`); err != nil {
		return fmt.Errorf("lock %s: %w", p.table(), err)
	}
	now, err := p.inspect(ctx, tx)
	if err == nil && now != oid {
		err = refuse(lockerr.Schema, "%s was replaced by another one meanwhile: migrate again", p.table())
	}
	return err
}

// inspect returns the version table's oid, 0 if there is none, and an error if it is not a plain table of an owner that
// is trusted. It reads catalogs only.
func (p place) inspect(ctx context.Context, tx pgx.Tx) (uint32, error) {
	const sqlInspect = `
SELECT c.oid, coalesce(r.rolname, ''), c.relowner IN (` + sqlTrusted + `),
       CASE
           WHEN c.relkind <> 'r' THEN 'is not an ordinary table'
           WHEN c.relpersistence <> 'p' THEN 'is not a permanent table'
           WHEN c.relispartition OR EXISTS (SELECT FROM pg_inherits AS i WHERE c.oid IN (i.inhrelid, i.inhparent))
               THEN 'inherits, or is inherited from'
           WHEN EXISTS (SELECT FROM pg_rewrite AS w WHERE w.ev_class = c.oid) THEN 'has rules'
           WHEN EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid) THEN 'has triggers or foreign keys'
           WHEN c.relrowsecurity OR EXISTS (SELECT FROM pg_policy AS l WHERE l.polrelid = c.oid) THEN 'has row security'
           WHEN (SELECT count(*) FROM pg_attribute AS a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = ''
                    AND (a.attname = 'version' AND a.atttypid = 'bigint'::regtype
                         OR a.attname = 'dirty' AND a.atttypid = 'boolean'::regtype)) <> 2
             OR (SELECT count(*) FROM pg_attribute AS a
                  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) <> 2
               THEN 'has other columns than version bigint and dirty boolean, or defaults'
           WHEN EXISTS (SELECT FROM pg_constraint AS k WHERE k.conrelid = c.oid AND k.contype NOT IN ('p', 'u', 'n'))
               THEN 'has other constraints than a primary key'
           WHEN EXISTS (SELECT FROM pg_index AS x
                         WHERE x.indrelid = c.oid AND (x.indexprs IS NOT NULL OR x.indpred IS NOT NULL))
               THEN 'has an index on an expression'
           ELSE ''
       END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_roles AS r ON r.oid = c.relowner
WHERE n.nspname = $1 AND c.relname = $2`
	var oid uint32
	var owner, problem string
	var trusted bool
	err := tx.QueryRow(ctx, sqlInspect, p.schema, migrations.VersionTable).Scan(&oid, &owner, &trusted, &problem)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("look for %s: %w", p.table(), err)
	case !trusted:
		return 0, refuse(lockerr.Schema, "the version table %s belongs to role %s, who is %s, and is not touched: it could run code of "+
			"that role. Drop or rename it, or, if it is right, give it to the migrating role (ALTER TABLE ... OWNER TO) or "+
			"migrate as %[2]s", p.table(), quote(owner), p.neither())
	case problem != "":
		return 0, refuse(lockerr.Schema, "the version table %s %s, and is not touched: that could run code of somebody else. Drop or rename "+
			"it: the schema pgbaton itself knows its version", p.table(), problem)
	}
	return oid, nil
}

// record makes the version table say what the schema says. Version 0, of no schema, is no row, as golang-migrate has it.
func (p place) record(ctx context.Context, tx pgx.Tx, recorded row, version int64) error {
	if recorded == (row{table: true, rows: 1, version: version}) || version == 0 && recorded.rows == 0 {
		return nil
	}
	if !recorded.table {
		create := `CREATE TABLE ` + p.table() + ` (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)`
		if _, err := tx.Exec(ctx, create); err != nil {
			return fmt.Errorf("create %s: %w", p.table(), err)
		}
	}
	oid, err := p.inspect(ctx, tx)
	if err == nil {
		err = p.hold(ctx, tx, oid, "SHARE ROW EXCLUSIVE")
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM ONLY `+p.table()); err != nil {
		return fmt.Errorf("record version %d: %w", version, err)
	}
	if version == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, `INSERT INTO `+p.table()+` (version, dirty) VALUES ($1, false)`, version); err != nil {
		return fmt.Errorf("record version %d: %w", version, err)
	}
	return nil
}
