package pgbaton

import (
	"context"
	"database/sql"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/dsn"
	"github.com/pgbaton/pgbaton/internal/migrator"
)

// Migrate creates the schema pgbaton, or brings an older one up to date, by the files in
// [github.com/pgbaton/pgbaton/migrations.FS]. Call it at every start or once per deploy; when there is nothing to do, it only reads.
//
// On an engine that cannot run these it takes [github.com/pgbaton/pgbaton/migrations.Portable], which makes the schema in SQL alone, for leases. It tries what the
// server has before it makes a schema (PL/pgSQL, advisory locks of sessions and of transactions, sequences, UNLOGGED tables), in
// transactions that are rolled back and with a second connection for a moment, and logs its choice and the reason by [slog.InfoContext]. A
// database keeps the set that it has. What follows is about the full set; the portable one has no version table.
//
// On success the schema is at least as new as this version of the package. A newer schema is left alone:
// in a rolling deploy an older replica may start after a newer one has migrated. On failure everything up
// to the last whole file stays, and nothing of the file that failed: a file and its row in the version
// table are one transaction. Replicas that start at the same time wait for each other, until ctx ends.
//
// The version table is pgbaton_schema_migrations in current_schema(), laid out as golang-migrate does it,
// and Migrate holds golang-migrate's advisory lock while it reads and writes it. So golang-migrate's pgx
// and postgres drivers (with that table's name, and without x-multi-statement) and Migrate can take over
// from each other, also while the other is at work. The row in it proves nothing: other tools drop the schema and leave the
// row, or the other way round. Migrate goes by what is there, and sets the row right:
//
//	the schema pgbaton              | no row | a row, lower | the same row | a row, higher | a dirty row
//	is missing                      | Migrate makes it from nothing, whatever the row says
//	has version V, and all of it    | Migrate goes on from V, and the row says so afterwards
//	the same, and some of a later   | as above                                              | an error
//	has version V, but not all of it| an error that names what is missing
//	is newer than this package      | left alone; the row is set to its version             | an error
//	does not say a version          | an error
//	belongs to an untrusted role    | an error
//
// docs/migrations.md has a way out of each. Such an error matches [ErrSchema].
//
// Migrate runs nobody's code but PostgreSQL's and its own: it touches the version table only if that is a plain table, and
// schema and table only if they belong to the role that migrates, to the database's owner or to a superuser. To add to an
// existing schema it must be the owner (or a superuser, if the owner is one).
//
// The database is given by a pool, by a *sql.DB of pgx's driver, or by a connection string or URL as pgx knows it.
// Migrate opens one connection of its own, made as [New] makes them, and closes it. A pooler in transaction mode is
// [ErrPooler], a standby [ErrStandby].
//
// The role needs CREATE on the database and on current_schema(); it will own the schema. It is usually not
// the role that the service runs as. That one needs what this gives and nothing else, and need not (and
// without rights on the version table, cannot) call Migrate:
//
//	SELECT pgbaton.grant_service('app');
func Migrate[DB *pgxpool.Pool | *sql.DB | string](ctx context.Context, db DB) error {
	if err := migrate(ctx, db); err != nil {
		return wrap(err, "migrate")
	}
	return nil
}

func migrate(ctx context.Context, db any) error {
	var config *pgxpool.Config
	var err error
	if connString, ok := db.(string); ok {
		config, err = dsn.Parse(connString)
	} else {
		config, err = configOf(ctx, db)
	}
	if err != nil {
		return err
	}
	set, err := migrator.Migrate(ctx, config)
	if err != nil {
		return err
	}
	if set.New {
		slog.InfoContext(ctx, "pgbaton: the schema was made", "migrations", set.Name, "because", set.Reason)
	}
	return nil
}
