package pgbaton

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/migrations"
)

// migrateCloseTimeout bounds the goodbye to the server when the caller's context has ended.
const migrateCloseTimeout = 5 * time.Second

// Migrate creates the schema pgbaton, or brings an older one up to date, by the files in
// [migrations.FS]. Call it at every start or once per deploy; when there is nothing to do, it only reads.
//
// On success the schema is at least as new as this version of the package. A newer schema is left alone:
// in a rolling deploy an older replica may start after a newer one has migrated. On failure everything up
// to the last whole file stays, and nothing of the file that failed: a file and its row in the version
// table are one transaction. Replicas that start at the same time wait for each other, until ctx ends.
//
// The version table is pgbaton_schema_migrations in current_schema(), laid out as golang-migrate does it,
// and Migrate holds golang-migrate's advisory lock while it reads and writes it. So golang-migrate's pgx
// and postgres drivers (with that table's name, and without x-multi-statement) and Migrate can take over
// from each other, also while the other is at work. A version that golang-migrate has left dirty is an
// error that says what to do. Where a service has copied the files into migrations of its own, there
// is no version row: Migrate then believes pgbaton.schema_version(), if the current role owns the schema
// and that function, records the version and goes on from there.
//
// Migrate opens one connection of its own, made as the pool makes them, and closes it.
//
// The role needs CREATE on the database and on current_schema(); it will own the schema. It is usually not
// the role that the service runs as. That one needs these grants and nothing else, and need not (and
// without rights on the version table, cannot) call Migrate:
//
//	GRANT USAGE ON SCHEMA pgbaton TO app;
//	GRANT USAGE ON SEQUENCE pgbaton.token TO app;
func Migrate(ctx context.Context, pool *pgxpool.Pool) error {
	if pool == nil {
		return errors.New("pgbaton: migrate: the pool is nil")
	}
	conn, err := connectLikePool(ctx, pool.Config())
	if err != nil {
		return fmt.Errorf("pgbaton: migrate: connect: %w", err)
	}
	defer closeWithin(ctx, conn, migrateCloseTimeout)
	return migrate(ctx, conn, migrations.FS)
}

// connectLikePool opens a connection as the pool would: with its hooks, but outside of it.
func connectLikePool(ctx context.Context, config *pgxpool.Config) (*pgx.Conn, error) {
	connConfig := config.ConnConfig.Copy()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, connConfig); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, connConfig)
	if err != nil {
		return nil, err
	}
	if config.AfterConnect != nil {
		if err := config.AfterConnect(ctx, conn); err != nil {
			closeWithin(ctx, conn, migrateCloseTimeout)
			return nil, err
		}
	}
	return conn, nil
}

func closeWithin(ctx context.Context, conn *pgx.Conn, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	_ = conn.Close(ctx) // the connection is gone in any case
}

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

// migrate applies the files of fsys that the database does not have yet, each in a transaction of
// its own. The advisory lock is the transaction's, not the session's: a session lock would gain nothing, as
// the version is read again each time, and would be lost behind a transaction-mode pooler.
func migrate(ctx context.Context, conn *pgx.Conn, fsys fs.FS) error {
	files, err := readMigrations(fsys)
	if err != nil {
		return fmt.Errorf("pgbaton: migrate: read files: %w", err)
	}
	for done := false; !done; {
		// READ COMMITTED, because a stricter level would read the version as it was before the wait
		// for the lock.
		options := pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}
		err := pgx.BeginTxFunc(ctx, conn, options, func(tx pgx.Tx) (err error) {
			done, err = migrateStep(ctx, tx, files)
			return err
		})
		if err != nil {
			return fmt.Errorf("pgbaton: migrate: %w", err)
		}
	}
	return nil
}

// migrateStep applies the next file, or says that there is none.
func migrateStep(ctx context.Context, tx pgx.Tx, files []migration) (done bool, err error) {
	place, err := findVersionPlace(ctx, tx)
	if err != nil {
		return false, err
	}
	if err := place.lock(ctx, tx); err != nil {
		return false, fmt.Errorf("wait for the migration lock: %w", err)
	}
	version, err := place.version(ctx, tx)
	if err != nil {
		return false, err
	}
	next := slices.IndexFunc(files, func(m migration) bool { return m.version > version })
	if next < 0 {
		return true, nil
	}
	if err := place.apply(ctx, tx, files[next]); err != nil {
		return false, fmt.Errorf("apply %s: %w", files[next].name, err)
	}
	return false, nil
}

// versionPlace is where the version table is, and how the session was set when it was looked for.
type versionPlace struct {
	database   string
	schema     string
	searchPath string
}

func findVersionPlace(ctx context.Context, tx pgx.Tx) (versionPlace, error) {
	const sqlPlace = `
SELECT pg_catalog.current_database()::text, coalesce(pg_catalog.current_schema()::text, ''),
       pg_catalog.current_setting('search_path')`
	var place versionPlace
	err := tx.QueryRow(ctx, sqlPlace).Scan(&place.database, &place.schema, &place.searchPath)
	switch {
	case err != nil:
		return versionPlace{}, fmt.Errorf("look for the version table: %w", err)
	case place.schema == "":
		return versionPlace{}, fmt.Errorf("search_path (%s) names no schema that exists and that the role may use: "+
			"current_schema() is NULL, and %s has no place", place.searchPath, migrations.VersionTable)
	case place.schema == "pgbaton":
		return versionPlace{}, place.refusePgbaton()
	}
	return place, nil
}

// refusePgbaton: before the first migration the schema pgbaton does not exist and current_schema() is
// another one, so the version table would be looked for in a new place after it.
func (p versionPlace) refusePgbaton() error {
	return fmt.Errorf("search_path (%s) makes pgbaton the current schema, and %s cannot be in the schema that "+
		`the migrations make: put another schema first (a role named pgbaton has it through "$user")`,
		p.searchPath, migrations.VersionTable)
}

func (p versionPlace) table() string {
	return pgx.Identifier{p.schema, migrations.VersionTable}.Sanitize()
}

// lock waits for golang-migrate's locks until the end of the transaction. There are two: for a
// database/sql handle golang-migrate hashes the database's name, for a URL its path, which begins with
// a slash. The role's timeouts are for statements that work, not for this wait; ctx bounds it.
func (p versionPlace) lock(ctx context.Context, tx pgx.Tx) error {
	const (
		sqlTimeouts = `
SELECT pg_catalog.current_setting('lock_timeout'), pg_catalog.current_setting('statement_timeout')`
		sqlSetTimeouts = `
SELECT pg_catalog.set_config('lock_timeout', $1, true), pg_catalog.set_config('statement_timeout', $2, true)`
		sqlLock = `
SELECT pg_catalog.pg_advisory_xact_lock($1), pg_catalog.pg_advisory_xact_lock($2)`
	)
	var lockTimeout, statementTimeout string
	if err := tx.QueryRow(ctx, sqlTimeouts).Scan(&lockTimeout, &statementTimeout); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sqlSetTimeouts, "0", "0"); err != nil {
		return err
	}
	byName := migrateLockID(p.database, p.schema)
	byPath := migrateLockID("/"+p.database, p.schema)
	if _, err := tx.Exec(ctx, sqlLock, byName, byPath); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, sqlSetTimeouts, lockTimeout, statementTimeout)
	return err
}

// migrateLockID is the advisory lock that golang-migrate takes for the version table.
func migrateLockID(database, schema string) int64 {
	const salt uint32 = 1486364155
	sum := crc32.ChecksumIEEE([]byte(strings.Join([]string{schema, migrations.VersionTable, database}, "\x00")))
	return int64(sum * salt) // the product wraps at 32 bits
}

// version makes the version table if need be and returns the version in it; 0 is none.
func (p versionPlace) version(ctx context.Context, tx pgx.Tx) (int64, error) {
	var exists bool
	if err := tx.QueryRow(ctx, `SELECT pg_catalog.to_regclass($1) IS NOT NULL`, p.table()).Scan(&exists); err != nil {
		return 0, fmt.Errorf("look for %s: %w", p.table(), err)
	}
	if !exists {
		create := `CREATE TABLE ` + p.table() + ` (version bigint not null primary key, dirty boolean not null)`
		if _, err := tx.Exec(ctx, create); err != nil {
			return 0, fmt.Errorf("create %s: %w", p.table(), err)
		}
	}
	var version int64
	var dirty bool
	err := tx.QueryRow(ctx, `SELECT version, dirty FROM `+p.table()+` LIMIT 1`).Scan(&version, &dirty)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return p.adopt(ctx, tx)
	case err != nil:
		return 0, fmt.Errorf("read %s: %w", p.table(), err)
	case dirty:
		return 0, fmt.Errorf("version %d in %s is dirty: another tool began it and did not finish. See what of that "+
			"migration is there, complete or undo it by hand, and then set the row to the version that is there "+
			"and dirty to false (golang-migrate: force)", version, p.table())
	}
	return version, nil
}

// adopt records the version of a schema that has no version row, because a service has its files among
// migrations of its own. It runs a function of that schema, so the current role must own it: whoever may
// create schemas could have put a trap there.
func (p versionPlace) adopt(ctx context.Context, tx pgx.Tx) (int64, error) {
	const sqlOwned = `
SELECT n.nspowner = r.oid AND p.proowner = r.oid
FROM pg_catalog.pg_namespace AS n
JOIN pg_catalog.pg_proc AS p ON p.pronamespace = n.oid AND p.proname = 'schema_version' AND p.pronargs = 0
JOIN pg_catalog.pg_roles AS r ON r.rolname = current_user
WHERE n.nspname = 'pgbaton'`
	var owned bool
	err := tx.QueryRow(ctx, sqlOwned).Scan(&owned)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, nil // nothing there to adopt
	case err != nil:
		return 0, fmt.Errorf("look for the schema: %w", err)
	case !owned:
		return 0, fmt.Errorf("the schema pgbaton exists, %s has no row, and the current role does not own the schema and "+
			"its functions: migrate as their owner, or insert the version by hand", p.table())
	}
	var version int64
	if err := tx.QueryRow(ctx, `SELECT version FROM pgbaton.schema_version()`).Scan(&version); err != nil {
		return 0, fmt.Errorf("adopt the schema: %w", err)
	}
	return version, p.record(ctx, tx, version)
}

// apply runs a file and records its version. The file sees nothing but pg_catalog, so that no function
// of another schema gets into the bodies that it makes.
func (p versionPlace) apply(ctx context.Context, tx pgx.Tx, file migration) error {
	const (
		sqlSetSearchPath = `SELECT pg_catalog.set_config('search_path', $1, true)`
		sqlCurrentSchema = `SELECT coalesce(pg_catalog.current_schema()::text, '')`
	)
	if _, err := tx.Exec(ctx, sqlSetSearchPath, "pg_catalog, pg_temp"); err != nil {
		return err
	}
	// Without parameters and by the simple protocol: a file is many statements.
	if _, err := tx.Conn().PgConn().Exec(ctx, file.sql).ReadAll(); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sqlSetSearchPath, p.searchPath); err != nil {
		return err
	}
	var schema string
	if err := tx.QueryRow(ctx, sqlCurrentSchema).Scan(&schema); err != nil {
		return err
	}
	if schema != p.schema {
		return p.refusePgbaton()
	}
	return p.record(ctx, tx, file.version)
}

func (p versionPlace) record(ctx context.Context, tx pgx.Tx, version int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM `+p.table()); err != nil {
		return fmt.Errorf("record version %d: %w", version, err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO `+p.table()+` (version, dirty) VALUES ($1, false)`, version); err != nil {
		return fmt.Errorf("record version %d: %w", version, err)
	}
	return nil
}
