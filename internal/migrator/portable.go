package migrator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// Apply applies the files of the set that the schema does not have yet.
func (s Set) Apply(ctx context.Context, conn *pgx.Conn) error {
	if s.Name == portableSet {
		return runPortable(ctx, conn, s.files, s.Reason)
	}
	err := Run(ctx, conn, s.files)
	if code := pgerr.Code(err); !s.New && (code == pgerr.UndefinedFunction || code == pgerr.FeatureNotSupported) {
		return refuse(lockerr.Schema, "the database has the full set of migrations, as after a move from another server, and this server cannot "+
			"run it: %w", err)
	}
	return err
}

// runPortable is [Run] for the portable set. There is no advisory lock and no version table, and a transaction may have any isolation: of
// two that make the schema at the same time the second fails, since the schema is there, and looks again; later files are applied with
// the row of pgbaton.portable locked.
func runPortable(ctx context.Context, conn *pgx.Conn, fsys fs.FS, reason string) error {
	files, err := readMigrations(fsys)
	if err != nil {
		return fmt.Errorf("read files: %w", err)
	}
	for attempt := 1; ; {
		var p place
		done := false
		err := pgx.BeginFunc(ctx, portableBeginner{conn}, func(tx pgx.Tx) (err error) {
			done, err = p.stepPortable(ctx, tx, files, reason)
			return err
		})
		switch {
		case err == nil && done:
			return nil
		case err == nil:
			continue
		case !overtaken(err) || attempt == mostTries:
			return explain(err, p.role)
		}
		if ended := backoff.Wait(ctx, attempt); ended != nil {
			return fmt.Errorf("%w: %w", ended, err)
		}
		attempt++
	}
}

// overtaken reports whether a transaction may have failed because another one did the same at the same time.
func overtaken(err error) bool {
	switch pgerr.Code(err) {
	case pgerr.QueryCanceled, pgerr.UniqueViolation, pgerr.DuplicateSchema, pgerr.CompletionUnknown:
		return true
	}
	return pgerr.Retryable(err)
}

// portableBeginner begins transactions with the settings pinned that decide what a file means, as far as other engines know them.
type portableBeginner struct{ *pgx.Conn }

// Begin begins a transaction.
func (b portableBeginner) Begin(ctx context.Context) (pgx.Tx, error) {
	return begin(ctx, b.Conn, beginPortable)
}

const sqlMigrator = `SELECT r.rolname, r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user`

// stepPortable applies the next file, or says that there is none.
func (p *place) stepPortable(ctx context.Context, tx pgx.Tx, files []migration, reason string) (done bool, err error) {
	if err := tx.QueryRow(ctx, sqlMigrator).Scan(&p.role, &p.superuser); err != nil {
		return false, err
	}
	found, err := look(ctx, tx)
	if err != nil {
		return false, err
	}
	if err := judgePortable(found, files, *p); err != nil {
		return false, err
	}
	next := slices.IndexFunc(files, func(m migration) bool { return m.version > found.version })
	if next < 0 {
		return true, nil
	}
	if found.exists {
		if err := found.refuseToAlter(*p); err != nil {
			return false, err
		}
		if _, err := tx.Exec(ctx, "SELECT FROM pgbaton.portable FOR UPDATE"); err != nil {
			return false, err
		}
		// In a statement of its own: the function's constants are read when a statement is planned, before it waits for the row. The lock on the
		// table, in another mode than before, has the server hear that the function is another one by now.
		var now int64
		err := tx.QueryRow(ctx, "SELECT s.version FROM pgbaton.portable AS p, pgbaton.schema_version() AS s").Scan(&now)
		if err != nil || now != found.version {
			return false, err // another one was faster
		}
	}
	// Without parameters and by the simple protocol: a file is many statements.
	if _, err := tx.Conn().PgConn().Exec(ctx, files[next].sql).ReadAll(); err != nil {
		return false, fmt.Errorf("apply %s: %w", files[next].name, err)
	}
	if !found.exists {
		if _, err := tx.Exec(ctx, "UPDATE pgbaton.portable SET reason = $1", reason); err != nil {
			return false, fmt.Errorf("record the reason: %w", err)
		}
	}
	return false, nil
}

// judgePortable reports why nothing should be done with what was found.
func judgePortable(found schema, files []migration, p place) error {
	if found.exists && !found.portable() && found.version >= 0 {
		return refuse(lockerr.Schema, "the schema pgbaton is of the full set, and what was to be applied is the portable one: %w", errOtherSet)
	}
	return judge(row{}, found, files, p)
}

var errOtherSet = errors.New("a database has one set: to change it, end all clients, drop the schema (which forgets semaphores, leaders, jobs and " +
	"fences) and migrate again")
