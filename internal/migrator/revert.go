package migrator

import (
	"context"
	"fmt"
	"io/fs"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/migrations"
)

// Newest is the version of the set's last file.
func (s Set) Newest() (int64, error) {
	files, err := readMigrations(s.files)
	if err != nil {
		return 0, fmt.Errorf("read files: %w", err)
	}
	return newest(files), nil
}

// SQL returns the files of the set that lead from one version to another: the up files in their order, or the down files from the last one.
func (s Set) SQL(from, to int64) (names, texts []string, err error) {
	files, err := readMigrations(s.files)
	if err != nil {
		return nil, nil, fmt.Errorf("read files: %w", err)
	}
	suffix := ".up.sql"
	if to < from {
		from, to, suffix = to, from, ".down.sql"
		slices.Reverse(files)
	}
	for _, file := range files {
		if file.version <= from || file.version > to {
			continue
		}
		text, err := fs.ReadFile(s.files, file.name+suffix)
		if err != nil {
			return nil, nil, err
		}
		names, texts = append(names, file.name+suffix), append(texts, string(text))
	}
	return names, texts, nil
}

// SetOf returns the set of a name, full or portable.
func SetOf(portable bool) Set {
	if portable {
		return Set{Name: portableSet, files: migrations.Portable()}
	}
	return Set{Name: fullSet, files: migrations.FS}
}

// Revert takes back what the files after a version have made, the newest first, each in a transaction of its own; 0 takes back the
// schema. It returns the version that the schema had. What is guaranteed for [Run] holds here as well.
func (s Set) Revert(ctx context.Context, conn *pgx.Conn, to int64) (from int64, err error) {
	files, err := readMigrations(s.files)
	if err != nil {
		return 0, fmt.Errorf("read files: %w", err)
	}
	for first, done := true, false; !done; first = false {
		var p place
		var version int64
		begin := func(f func(pgx.Tx) error) error { return pgx.BeginFunc(ctx, beginner{conn}, f) }
		if s.Name == portableSet {
			begin = func(f func(pgx.Tx) error) error { return pgx.BeginFunc(ctx, portableBeginner{conn}, f) }
		}
		err := begin(func(tx pgx.Tx) (err error) {
			version, done, err = s.stepBack(ctx, tx, &p, files, to)
			return err
		})
		if err != nil {
			return from, explain(err, p.role)
		}
		if first {
			from = version
		}
	}
	return from, nil
}

// stepBack takes back the newest file, if it is newer than a version, and returns the version that was there before.
func (s Set) stepBack(ctx context.Context, tx pgx.Tx, p *place, files []migration, to int64) (version int64, done bool, err error) {
	full := s.Name == fullSet
	var recorded row
	if full {
		if *p, err = findPlace(ctx, tx); err != nil {
			return 0, false, err
		}
		if err := p.lock(ctx, tx); err != nil {
			return 0, false, fmt.Errorf("wait for the migration lock: %w", err)
		}
		if recorded, err = p.read(ctx, tx); err != nil {
			return 0, false, err
		}
	} else if err := tx.QueryRow(ctx, sqlMigrator).Scan(&p.role, &p.superuser); err != nil {
		return 0, false, err
	}
	found, err := look(ctx, tx)
	switch {
	case err != nil:
		return 0, false, err
	case !found.exists || found.version <= to:
		return found.version, true, nil
	}
	if err := judge(recorded, found, files, *p); err != nil {
		return 0, false, err
	}
	if err := found.refuseToAlter(*p); err != nil {
		return 0, false, err
	}
	last := slices.IndexFunc(files, func(m migration) bool { return m.version == found.version })
	if last < 0 {
		return 0, false, refuse(lockerr.Schema, "the schema pgbaton has version %d, which this program does not know: take it back with the newer one",
			found.version)
	}
	before := int64(0)
	if last > 0 {
		before = files[last-1].version
	}
	if before < to {
		return 0, false, fmt.Errorf("there is no version %d", to)
	}
	if err := s.takeBack(ctx, tx, files[last], before); err != nil {
		return 0, false, fmt.Errorf("take back %s: %w", files[last].name, err)
	}
	if !full {
		return found.version, false, nil
	}
	return found.version, false, p.record(ctx, tx, recorded, before)
}

// takeBack runs a down file, and makes sure that it has led where it should.
func (s Set) takeBack(ctx context.Context, tx pgx.Tx, file migration, before int64) error {
	text, err := fs.ReadFile(s.files, file.name+".down.sql")
	if err != nil {
		return err
	}
	if _, err := tx.Conn().PgConn().Exec(ctx, string(text)).ReadAll(); err != nil {
		return err
	}
	now, err := look(ctx, tx)
	switch {
	case err != nil:
		return err
	case now.exists != (before > 0) || now.exists && now.version != before:
		return fmt.Errorf("the schema should be of version %d after it, and is not", before)
	}
	return nil
}
