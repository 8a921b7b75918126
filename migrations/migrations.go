// Package migrations holds the SQL files that make the schema pgbaton, in golang-migrate's naming:
// NNNNNN_title.up.sql and NNNNNN_title.down.sql.
package migrations

import (
	"embed"
	"io/fs"
)

// FS holds the migration files at its root, as golang-migrate's iofs source wants them.
//
//go:embed *.sql
var FS embed.FS

//go:embed portable/*.sql
var portable embed.FS

// Portable returns the files of the portable set at their root: for engines that speak PostgreSQL's protocol and SQL and cannot run
// those of FS. A database has one of the two sets. It has no version table: the schema itself says its version.
func Portable() fs.FS {
	files, err := fs.Sub(portable, "portable")
	if err != nil { // only of a name that is none
		panic(err)
	}
	return files
}

// VersionTable is the table in which golang-migrate's and pgbaton.Migrate's progress is kept. It has
// a name of its own so that it never meets the version table of the service's own migrations.
const VersionTable = "pgbaton_schema_migrations"
