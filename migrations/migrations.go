// Package migrations holds the SQL files that make the schema pgbaton, in golang-migrate's naming:
// NNNNNN_title.up.sql and NNNNNN_title.down.sql.
package migrations

import "embed"

// FS holds the migration files at its root, as golang-migrate's iofs source wants them.
//
//go:embed *.sql
var FS embed.FS

// VersionTable is the table in which golang-migrate's and pgbaton.Migrate's progress is kept. It has
// a name of its own so that it never meets the version table of the service's own migrations.
const VersionTable = "pgbaton_schema_migrations"
