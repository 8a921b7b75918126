package migrator

import (
	"context"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/migrations"
)

// pins are the settings that decide what a statement means or whether it runs, whatever role, database, URL or AfterConnect
// say. Not pinned are those that a role may well have its own way with, because they change neither what the files make
// nor whether they can: default_tablespace, synchronous_commit, role, and lock_timeout while a file waits for a table
// that is in use.
var pins = strings.Join([]string{
	"SET LOCAL statement_timeout = 0", // first: it may end those before it
	"SET LOCAL idle_in_transaction_session_timeout = 0",
	"SET LOCAL client_encoding = 'UTF8'",
	"SET LOCAL standard_conforming_strings = on",
	"SET LOCAL backslash_quote = safe_encoding",
	"SET LOCAL transform_null_equals = off",
	"SET LOCAL array_nulls = on",
	"SET LOCAL check_function_bodies = on",
	"SET LOCAL DateStyle = 'ISO, MDY'",
	"SET LOCAL IntervalStyle = 'postgres'",
	"SET LOCAL TimeZone = 'UTC'",
	"SET LOCAL xmloption = content",
	"SET LOCAL default_table_access_method = heap",
	"SET LOCAL row_security = on",
	"SET LOCAL plpgsql.extra_errors = 'none'",
	"SET LOCAL plpgsql.extra_warnings = 'none'",
	"SET LOCAL jit = off", // compiling costs a second and more a statement when planner settings of the role make all look dear
}, "; ")

// timeoutPins is for servers that have the setting, from 17 on.
const timeoutPins = "; SET LOCAL transaction_timeout = 0"

// place is where the version table is, and how the session was set when it was looked for.
type place struct {
	database    string
	schema      string
	searchPath  string
	lockTimeout string
	role        string
	superuser   bool
}

// beginner begins transactions whose settings are pinned. The statements for that are one message: a setting such as
// idle_in_transaction_session_timeout must not find the session idle in between. The transaction is READ COMMITTED, because a
// stricter level would read the schema as it was before the wait for the lock.
type beginner struct{ *pgx.Conn }

// beginPinned returns what begins a transaction of a beginner.
func beginPinned(conn *pgconn.PgConn) string {
	sql := "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; " + pins
	if major(conn) >= 17 {
		sql += timeoutPins
	}
	return sql
}

// Begin begins a transaction. What the role's statement_timeout has ended is begun again.
func (b beginner) Begin(ctx context.Context) (tx pgx.Tx, err error) {
	return begin(ctx, b.Conn, beginPinned(b.PgConn()))
}

// begin begins a transaction by statements, again if the role's statement_timeout ends them.
func begin(ctx context.Context, conn *pgx.Conn, sql string) (tx pgx.Tx, err error) {
	aborted := false
	err = session.Insist(func() error {
		if aborted {
			if _, err := conn.Exec(ctx, "ROLLBACK"); err != nil {
				return err
			}
		}
		tx, err = conn.BeginTx(ctx, pgx.TxOptions{BeginQuery: sql})
		aborted = err != nil && conn.PgConn().TxStatus() != 'I'
		return err
	})
	return tx, err
}

// findPlace looks where the version table is, in a transaction that a beginner has begun.
func findPlace(ctx context.Context, tx pgx.Tx) (place, error) {
	// The search_path is still the caller's: no operators, and no types by name.
	const (
		sqlPlace = `
SELECT pg_catalog.current_database(), coalesce(pg_catalog.current_schema(), ''), pg_catalog.current_setting('search_path'),
       pg_catalog.current_setting('lock_timeout'), current_user`
		sqlNames = `SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true)`
		sqlRole  = `SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.rolname = current_user`
	)
	var p place
	err := tx.QueryRow(ctx, sqlPlace).Scan(&p.database, &p.schema, &p.searchPath, &p.lockTimeout, &p.role)
	if err == nil {
		_, err = tx.Exec(ctx, sqlNames)
	}
	if err == nil {
		err = tx.QueryRow(ctx, sqlRole).Scan(&p.superuser)
	}
	if err == nil {
		err = p.setLockTimeout(ctx, tx, "0")
	}
	switch {
	case err != nil:
		return p, fmt.Errorf("look for the version table: %w", err)
	case p.schema == "":
		return p, fmt.Errorf("search_path (%s) names no schema that exists and that the role may use: "+
			"current_schema() is NULL, and %s has no place", p.searchPath, migrations.VersionTable)
	case p.schema == "pgbaton":
		return p, p.refusePgbaton()
	case strings.HasPrefix(p.schema, "pg_"):
		return p, fmt.Errorf("search_path (%s) makes %s the current schema, and %s cannot be in one of the system's: "+
			"put another schema first", p.searchPath, p.schema, migrations.VersionTable)
	}
	return p, p.refuseOwner(ctx, tx)
}

// refuseOwner refuses a place that somebody else could swap while it is being used, by renaming schemas.
func (p place) refuseOwner(ctx context.Context, tx pgx.Tx) error {
	const sqlOwner = `
SELECT coalesce(r.rolname, ''), n.nspowner IN (` + sqlTrusted + `)
FROM pg_namespace AS n LEFT JOIN pg_roles AS r ON r.oid = n.nspowner WHERE n.nspname = $1`
	var owner string
	var trusted bool
	if err := tx.QueryRow(ctx, sqlOwner, p.schema).Scan(&owner, &trusted); err != nil {
		return fmt.Errorf("look for the schema %s: %w", quote(p.schema), err)
	}
	if !trusted {
		return refuse(lockerr.Schema, "the version table would be in schema %s, the first of search_path (%s), and that belongs to role "+
			"%s, who is %s: put another schema first, or migrate as that role",
			quote(p.schema), p.searchPath, quote(owner), p.neither())
	}
	return nil
}

// sqlTrusted are the roles whose code may run as the migrating role anyhow. pg_database_owner is the owner of the database
// under another name.
const sqlTrusted = `
SELECT t.oid FROM pg_roles AS t
WHERE t.rolsuper OR t.rolname IN (current_user, 'pg_database_owner')
   OR t.oid = (SELECT d.datdba FROM pg_database AS d WHERE d.datname = current_database())`

// neither says who is trusted.
func (p place) neither() string {
	return "neither the migrating role (" + quote(p.role) + ") nor the database's owner nor a superuser"
}

// refusePgbaton: before the first migration the schema pgbaton does not exist and current_schema() is
// another one, so the version table would be looked for in a new place after it.
func (p place) refusePgbaton() error {
	return fmt.Errorf("search_path (%s) makes pgbaton the current schema, and %s cannot be in the schema that "+
		`the migrations make: put another schema first (a role named pgbaton has it through "$user")`,
		p.searchPath, migrations.VersionTable)
}

// stays makes sure that the version table will be looked for where it is, also now that there is the schema pgbaton.
func (p place) stays(ctx context.Context, tx pgx.Tx) error {
	const (
		sqlSetSearchPath = `SELECT pg_catalog.set_config('search_path', $1, true)`
		sqlCurrentSchema = `SELECT coalesce(pg_catalog.current_schema(), '')`
	)
	var now string
	if _, err := tx.Exec(ctx, sqlSetSearchPath, p.searchPath); err != nil {
		return err
	}
	if err := tx.QueryRow(ctx, sqlCurrentSchema).Scan(&now); err != nil {
		return err
	}
	if now != p.schema {
		return p.refusePgbaton()
	}
	_, err := tx.Exec(ctx, sqlSetSearchPath, "pg_catalog, pg_temp")
	return err
}

// lock waits for golang-migrate's locks until the end of the transaction. There are two: for a
// database/sql handle golang-migrate hashes the database's name, for a URL its path, which begins with
// a slash.
func (p place) lock(ctx context.Context, tx pgx.Tx) error {
	const sqlLock = `SELECT pg_catalog.pg_advisory_xact_lock($1), pg_catalog.pg_advisory_xact_lock($2)`
	_, err := tx.Exec(ctx, sqlLock, lockID(p.database, p.schema), lockID("/"+p.database, p.schema))
	return err
}

// lockID is the advisory lock that golang-migrate takes for the version table.
func lockID(database, schema string) int64 {
	const salt uint32 = 1486364155
	sum := crc32.ChecksumIEEE([]byte(strings.Join([]string{schema, migrations.VersionTable, database}, "\x00")))
	return int64(sum * salt) // the product wraps at 32 bits
}

func (p place) setLockTimeout(ctx context.Context, tx pgx.Tx, value string) error {
	_, err := tx.Exec(ctx, `SELECT pg_catalog.set_config('lock_timeout', $1, true)`, value)
	return err
}

// major is the server's, from what it announced at login, such as "15.3 (Debian ...)" or "19devel"; 0 if that is no number.
func major(conn *pgconn.PgConn) int {
	announced := conn.ParameterStatus("server_version")
	digits := strings.IndexFunc(announced+".", func(r rune) bool { return r < '0' || r > '9' })
	number, err := strconv.Atoi(announced[:digits])
	if err != nil {
		return 0
	}
	return number
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
