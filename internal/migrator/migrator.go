// Package migrator brings the schema pgbaton up to date, in databases that others use as well.
//
// What it guarantees. [Run] applies a file and records its version in one transaction, under golang-migrate's advisory
// lock, so that both tools can be at work at the same time. The version is read from the schema, never from the version
// row: the row only informs other tools, and is set right when the schema says otherwise. Run returns nil only if the schema
// has a version at least as new as the newest file, and every table, sequence and function that the files make up to
// it.
//
// It executes no code that is not PostgreSQL's own or in the files, as long as the superusers, the owner of the database
// and the migrating role itself are honest. Others may own schemas in the database and may be allowed to create in the one
// in which the version table is. So:
//
//   - Every statement outside of the files has its names qualified, and runs with search_path pg_catalog, pg_temp as soon as
//     current_schema() is known. The settings that decide what a statement means are pinned for each transaction.
//   - The version table is locked, and then found, by the catalog, to be an ordinary table of a trusted owner with nothing
//     attached that could run when it is read or written; only then it is touched. A view, a rule, a trigger, a policy, a
//     default, a check, a child or an index on an expression refuses it.
//   - The schema's version is read from the catalog's text of pgbaton.schema_version(). The function is not called.
//   - Files are applied only to a schema that the migrating role owns with everything in it (or another superuser, if the
//     role is one), because they run triggers and defaults, and make functions that run as their owner.
//
// What it does not guarantee: that nobody can make it wait. An advisory lock is open to every role that may connect,
// and so is a lock on a table that it can read. The context bounds the wait.
package migrator

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// migration is one up file.
type migration struct {
	version int64
	name    string // without .up.sql
	sql     string
}

// readMigrations reads the up files at the root of fsys in the order of their versions.
func readMigrations(fsys fs.FS) ([]migration, error) {
	paths, err := fs.Glob(fsys, "*.up.sql")
	if err != nil {
		return nil, err
	}
	files := make([]migration, 0, len(paths))
	for _, path := range paths {
		name := strings.TrimSuffix(path, ".up.sql")
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: no version at its start: %w", path, err)
		}
		sql, err := fs.ReadFile(fsys, path)
		if err != nil {
			return nil, err
		}
		files = append(files, migration{version: version, name: name, sql: string(sql)})
	}
	slices.SortFunc(files, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	return files, nil
}

// Run applies the files of fsys that the schema does not have yet, each in a transaction of its own. The advisory
// lock is the transaction's, not the session's: a session lock would gain nothing, as the schema is read again each time.
func Run(ctx context.Context, conn *pgx.Conn, fsys fs.FS) error {
	files, err := readMigrations(fsys)
	if err != nil {
		return fmt.Errorf("read files: %w", err)
	}
	for done := false; !done; {
		var p place
		err := pgx.BeginFunc(ctx, beginner{conn}, func(tx pgx.Tx) (err error) {
			if p, err = findPlace(ctx, tx); err != nil {
				return err
			}
			done, err = step(ctx, tx, p, files)
			return err
		})
		if err != nil {
			return explain(err, p.role)
		}
	}
	return nil
}

// step applies the next file, or says that there is none, and sets the version row right.
func step(ctx context.Context, tx pgx.Tx, p place, files []migration) (done bool, err error) {
	if err := p.lock(ctx, tx); err != nil {
		return false, fmt.Errorf("wait for the migration lock: %w", err)
	}
	recorded, err := p.read(ctx, tx)
	if err != nil {
		return false, err
	}
	found, err := look(ctx, tx)
	if err != nil {
		return false, err
	}
	if found.exists && found.portable() {
		return false, refuse(lockerr.Schema, "the schema pgbaton is of the portable set, and what was to be applied is the full one: %w", errOtherSet)
	}
	if err := judge(recorded, found, files, p); err != nil {
		return false, err
	}
	next := slices.IndexFunc(files, func(m migration) bool { return m.version > found.version })
	if next >= 0 {
		if err := p.apply(ctx, tx, found, files[next]); err != nil {
			return false, fmt.Errorf("apply %s: %w", files[next].name, err)
		}
		return false, p.record(ctx, tx, recorded, files[next].version)
	}
	return true, p.record(ctx, tx, recorded, found.version)
}

// apply runs a file. The file sees nothing but pg_catalog, so that no function of another schema gets into the bodies
// that it makes.
func (p place) apply(ctx context.Context, tx pgx.Tx, found schema, file migration) error {
	if err := found.refuseToAlter(p); err != nil {
		return err
	}
	if err := p.setLockTimeout(ctx, tx, p.lockTimeout); err != nil {
		return err
	}
	// Without parameters and by the simple protocol: a file is many statements.
	if _, err := tx.Conn().PgConn().Exec(ctx, file.sql).ReadAll(); err != nil {
		return err
	}
	if err := p.setLockTimeout(ctx, tx, "0"); err != nil {
		return err
	}
	made, err := look(ctx, tx)
	switch {
	case err != nil:
		return err
	case made.version != file.version:
		return fmt.Errorf("pgbaton.schema_version() says %d after it, and must say %d", made.version, file.version)
	}
	return p.stays(ctx, tx)
}
