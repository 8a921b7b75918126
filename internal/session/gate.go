package session

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// ClientVersion is the version of the schema's interface that this code was written for. It works with a
// schema of this version or later whose oldest_client is not above it.
const ClientVersion = 1

// oldestMajor has idle_session_timeout, and waitstart in pg_locks.
const oldestMajor = 14

// Server is what a session found out about its server.
type Server struct {
	Identity        string // of this run of this server, and of the database
	Version         int    // server_version_num
	DeadlockTimeout time.Duration
	LockTable       int // how many locks fit into the server's lock table
}

const namesMeanWhatTheySay = "search_path = pg_catalog, pg_temp"

// sqlInspect reads catalogs only: it works, and tells what is missing, without any privilege on the schema.
// The lock table has room for max_locks_per_transaction for every process and prepared transaction.
const sqlInspect = `
SELECT current_setting('server_version_num'),
       pg_is_in_recovery(),
       coalesce((SELECT system_identifier FROM pg_control_system())::text, '')
           || '/' || extract(epoch FROM pg_postmaster_start_time())::text
           || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())::text,
       (SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'),
       current_setting('max_locks_per_transaction')::bigint
           * (SELECT sum(setting::bigint) FROM pg_settings
               WHERE name IN ('max_connections', 'max_prepared_transactions', 'autovacuum_max_workers',
                              'autovacuum_worker_slots', 'max_worker_processes', 'max_wal_senders')),
       current_user,
       n.oid IS NOT NULL,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       s.seqrelid IS NOT NULL,
       coalesce(has_sequence_privilege(s.seqrelid, 'USAGE'), false),
       coalesce(s.seqincrement = 32 AND s.seqcache = 1 AND NOT s.seqcycle AND s.seqtypid = 'bigint'::regtype
                AND s.seqmax = 9007199254740960 AND c.relpersistence = 'p', false),
       coalesce((SELECT i.relpersistence = 'u' FROM pg_class AS i
                  WHERE i.relnamespace = n.oid AND i.relname = 'incarnation'), false),
       EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = 'schema_version')
  FROM (SELECT) AS here
  LEFT JOIN pg_namespace AS n ON n.nspname = 'pgbaton'
  LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'token'
  LEFT JOIN pg_sequence AS s ON s.seqrelid = c.oid`

// inspect refuses wrong ground. What a role may do is checked before it is done, so that the error can
// name the GRANT.
func inspect(ctx context.Context, conn *pgconn.PgConn) (Server, error) {
	if version := conn.ParameterStatus("crdb_version"); version != "" {
		return Server{}, fmt.Errorf("%w: %s: its session advisory locks always succeed", lockerr.UnsupportedServer, version)
	}
	if err := checkVersion(conn.ParameterStatus("server_version")); err != nil {
		return Server{}, err
	}
	// Sent together they are one transaction, and the setting ends with it: behind a pooler it must not stay.
	row, err := queryRow(ctx, conn, "SET LOCAL "+namesMeanWhatTheySay+"; "+sqlInspect)
	if err != nil {
		return Server{}, fmt.Errorf("inspect the server: %w", err)
	}
	server, err := parseServer(row)
	if err != nil {
		return Server{}, err
	}
	if row[1] == "t" {
		return Server{}, fmt.Errorf("%w: it is in recovery, and its locks exclude nobody on the primary. "+
			"Connect to the primary (target_session_attrs=read-write)", lockerr.Standby)
	}
	if err := checkSchema(row[5], row[6:]); err != nil {
		return Server{}, err
	}
	return server, checkSchemaVersion(ctx, conn)
}

// checkVersion looks at the version that the server announces at login, such as "15.3 (Debian …)" or "19devel".
func checkVersion(announced string) error {
	digits := strings.IndexFunc(announced+".", func(r rune) bool { return r < '0' || r > '9' })
	major, err := strconv.Atoi(announced[:digits])
	if err != nil || major < oldestMajor {
		return fmt.Errorf("%w: it says that it is PostgreSQL %q; %d is the oldest that can end idle sessions",
			lockerr.UnsupportedServer, announced, oldestMajor)
	}
	return nil
}

func parseServer(row []string) (Server, error) {
	version, err1 := strconv.Atoi(row[0])
	deadlock, err2 := strconv.Atoi(row[3])
	table, err3 := strconv.Atoi(row[4])
	if err := errors.Join(err1, err2, err3); err != nil {
		return Server{}, fmt.Errorf("inspect the server: %w", err)
	}
	return Server{
		Identity:        row[2],
		Version:         version,
		DeadlockTimeout: time.Duration(deadlock) * time.Millisecond,
		LockTable:       table,
	}, nil
}

// checkSchema takes the yes/no columns of sqlInspect from "the schema exists" on.
func checkSchema(role string, yes []string) error {
	for i, problem := range []string{
		"schema pgbaton does not exist in this database: run its migrations (pgbaton.Migrate, or golang-migrate on migrations/)",
		"role ROLE lacks a privilege: GRANT USAGE ON SCHEMA pgbaton TO ROLE",
		"sequence pgbaton.token does not exist: run the migrations",
		"role ROLE lacks a privilege: GRANT USAGE ON SEQUENCE pgbaton.token TO ROLE",
		"sequence pgbaton.token was altered, so its tokens might repeat or go back: restore INCREMENT 32, CACHE 1, NO CYCLE, " +
			"MAXVALUE 9007199254740960, bigint, LOGGED",
		"table pgbaton.incarnation is missing or is not UNLOGGED, so a lost token sequence would go unnoticed: " +
			"ALTER TABLE pgbaton.incarnation SET UNLOGGED, or run the migrations",
		"function pgbaton.schema_version does not exist: run the migrations",
	} {
		if yes[i] != "t" {
			return fmt.Errorf("%w: %s", lockerr.Schema,
				strings.ReplaceAll(problem, "ROLE", pgx.Identifier{role}.Sanitize()))
		}
	}
	return nil
}

const sqlSchemaVersion = "SELECT version, oldest_client FROM pgbaton.schema_version()"

func checkSchemaVersion(ctx context.Context, conn *pgconn.PgConn) error {
	row, err := queryRow(ctx, conn, sqlSchemaVersion)
	if pgerr.Class(err) == pgerr.SyntaxOrAccess {
		return fmt.Errorf("%w: read its version: %w", lockerr.Schema, err)
	}
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	version, err1 := strconv.Atoi(row[0])
	oldest, err2 := strconv.Atoi(row[1])
	switch err := errors.Join(err1, err2); {
	case err != nil:
		return fmt.Errorf("%w: read its version: %w", lockerr.Schema, err)
	case version < ClientVersion:
		return fmt.Errorf("%w: it has version %d, this client needs %d: run the migrations", lockerr.Schema, version, ClientVersion)
	case oldest > ClientVersion:
		return fmt.Errorf("%w: it serves clients from version %d on, this one is %d: upgrade the library",
			lockerr.Schema, oldest, ClientVersion)
	}
	return nil
}

// repairTokens makes sure of the token sequence, see the migration. A crash or restart of the server ends
// every session, so a session that has looked once need not look again. It says whether one was repaired that had been
// used: a new one is set up in the same way.
func repairTokens(ctx context.Context, conn *pgconn.PgConn) (bool, error) {
	row, err := queryRow(ctx, conn, "SELECT used, pgbaton.repair_tokens() "+
		"FROM (SELECT pg_sequence_last_value('pgbaton.token') IS NOT NULL OFFSET 0) AS s(used)")
	if err != nil {
		return false, fmt.Errorf("check the token sequence: %w", err)
	}
	return row[0] == "t" && row[1] == "t", nil
}
