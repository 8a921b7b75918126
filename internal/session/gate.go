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
// schema of this version or later whose oldest_client is not above it. It is raised when the client calls what an older
// schema lacks.
const ClientVersion = 16

// oldestMajor has idle_session_timeout, and waitstart in pg_locks.
const oldestMajor = 14

// Server is what a session found out about its server.
type Server struct {
	Identity        string // of this run of this server, and of the database
	Version         int    // server_version_num
	Schema          int    // the schema's version
	DeadlockTimeout time.Duration
	LockTable       int  // how many locks fit into the server's lock table
	DirectDraws     bool // other roles than the schema's owner may use the token sequence itself
}

const (
	// sqlAside has names mean what they say, and the role's timeouts not count, until the end of what is sent with it: together these are
	// one transaction, and behind a pooler nothing of it may stay.
	sqlAside = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; SET LOCAL search_path = pg_catalog, pg_temp;"

	sqlDeadlockTimeout = "(extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000)::bigint" // in milliseconds
)

// sqlInspect reads catalogs only: it works, and tells what is missing, without any privilege on the schema.
//
// The lock table takes max_locks_per_transaction locks for every process and prepared transaction.
const sqlInspect = sqlAside + `
SELECT pg_backend_pid(),
       current_setting('server_version_num'),
       pg_is_in_recovery(),
       ` + sqlDeadlockTimeout + `,
       current_setting('max_locks_per_transaction')::bigint
           * (SELECT sum(current_setting(name, true)::bigint)
                FROM unnest(ARRAY['max_connections', 'max_prepared_transactions', 'autovacuum_max_workers',
                                  'autovacuum_worker_slots', 'max_worker_processes', 'max_wal_senders']) AS name),
       current_user,
       n.oid IS NOT NULL,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       s.seqrelid IS NOT NULL,
       coalesce(s.seqincrement = 32 AND s.seqcache = 1 AND NOT s.seqcycle AND s.seqtypid = 'bigint'::regtype
                AND s.seqmax = 9007199254740960 AND c.relpersistence = 'p', false),
       coalesce((SELECT i.relpersistence = 'u' FROM pg_class AS i
                  WHERE i.relnamespace = n.oid AND i.relname = 'incarnation'), false),
       EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = 'schema_version'),
       (SELECT string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.proname) FROM pg_proc AS p
         WHERE p.pronamespace = n.oid AND p.proname = ANY ('{OURS}'::text[]) AND NOT has_function_privilege(p.oid, 'EXECUTE')),
       (SELECT string_agg('pg_catalog.' || p.oid::regprocedure::text, ', ' ORDER BY p.proname) FROM pg_proc AS p
         WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ('{THEIRS}'::text[])
           AND NOT has_function_privilege(p.oid, 'EXECUTE')),
       EXISTS (SELECT FROM aclexplode(c.relacl) AS a WHERE a.grantee <> c.relowner AND a.privilege_type <> 'SELECT'),
       EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = 'portable_reason')
  FROM (SELECT) AS here
  LEFT JOIN pg_namespace AS n ON n.nspname = 'pgbaton'
  LEFT JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'token'
  LEFT JOIN pg_sequence AS s ON s.seqrelid = c.oid`

// ours and theirs are the functions that the client calls by itself, of the schema and of PostgreSQL. A function that is
// not named here fails at its first call instead of in New.
const (
	ours = "server_identity,schema_version,begin_session,draw_token,next_token,wait_for_turn,wait_for_turns," +
		"lock_for_transaction,key,fence,enlist,retire,tend,open_semaphore,claim_slots,renew_slots,free_slots," +
		"resize_semaphore,semaphore_state,semaphore_holders,holds_slots,keep_leaders,strike_leaders,leader_of," +
		"request_resign,start_run,end_run,look_run,forget_run,publish_waits,withdraw_waits,waits,publish_locks,list_locks,look_free,answer_free,join_engine," +
		"acquire_lease,acquire_leases,release_lease,release_leases,renew_leases,leave_leases,lock_leases,tend_leases,engine_record"
	theirs = "pg_try_advisory_lock,pg_try_advisory_lock_shared,pg_advisory_lock,pg_advisory_lock_shared," +
		"pg_advisory_unlock,pg_advisory_unlock_shared,pg_advisory_unlock_all,pg_try_advisory_xact_lock_shared," +
		"pg_advisory_xact_lock,pg_advisory_xact_lock_shared,pg_is_in_recovery,pg_backend_pid,set_config,pg_notify"
)

var sqlLook = strings.NewReplacer("OURS", ours, "THEIRS", theirs).Replace(sqlInspect)

// sqlGlance says whether what sqlInspect found a moment ago is this server's. It takes a tenth of the time: most of that which a server spends
// on a new session is for the catalogs that it has to read. What a role, a database or a hook may set is asked for each time.
const sqlGlance = sqlAside + `
SELECT pg_backend_pid(), pg_is_in_recovery(), current_user, pgbaton.server_identity(), ` + sqlDeadlockTimeout

// finding is what inspect found.
type finding struct {
	server  Server
	backend string // id of the server process that answered
	role    string
	known   bool // from the look of another session
}

// inspect refuses wrong ground. A privilege is checked before it is used, so that the error can
// name the GRANT. It takes one round trip, and one more for what may be a portable schema, since its engine need not have the catalogs that
// are looked at here, or where another session's look turns out to be of no use.
func inspect(ctx context.Context, conn *pgconn.PgConn, home *Home) (finding, error) {
	if found, ok := glance(ctx, conn, home.lastLook()); ok {
		return found, nil
	}
	found, err := look(ctx, conn)
	if err == nil || conn.IsClosed() || errors.Is(err, lockerr.Standby) {
		return found, err
	}
	switch portable := findPortable(ctx, conn); {
	case portable != nil:
		return finding{}, portable
	case errors.Is(err, errPortable):
		return finding{}, fmt.Errorf("%w: the role may not use it: as its owner, GRANT USAGE ON SCHEMA pgbaton TO the role", lockerr.Schema)
	}
	return found, err
}

// glance returns what another session of the same role has found on the same run of the same server, if there is such a one.
func glance(ctx context.Context, conn *pgconn.PgConn, last *pastLook) (finding, bool) {
	if last == nil {
		return finding{}, false
	}
	row, err := queryRow(ctx, conn, sqlGlance)
	if err != nil || row[1] == "t" || row[2] != last.role || row[3] != last.server.Identity {
		return finding{}, false
	}
	server := last.server
	if server.DeadlockTimeout, err = milliseconds(row[4]); err != nil {
		return finding{}, false
	}
	return finding{server: server, backend: row[0], role: row[2], known: true}, true
}

// look is inspect without the portable schema.
func look(ctx context.Context, conn *pgconn.PgConn) (finding, error) {
	if err := checkVersion(conn.ParameterStatus("server_version")); err != nil {
		return finding{}, err
	}
	row, err := queryRow(ctx, conn, sqlLook)
	if pgerr.Code(err) == pgerr.InsufficientPrivilege {
		return finding{}, fmt.Errorf("%w: the role lacks a privilege that PostgreSQL grants to PUBLIC unless somebody "+
			"revokes it; grant it to the role: %w", lockerr.Schema, err)
	}
	if err != nil {
		return finding{}, fmt.Errorf("inspect the server: %w", err)
	}
	version, err1 := strconv.Atoi(row[1])
	deadlock, err2 := milliseconds(row[3])
	table, err3 := strconv.Atoi(row[4])
	if err := errors.Join(err1, err2, err3); err != nil {
		return finding{}, fmt.Errorf("inspect the server: %w", err)
	}
	if row[2] == "t" {
		return finding{}, fmt.Errorf("%w: it is in recovery, and its locks exclude nobody on the primary. "+
			"Connect to the primary (target_session_attrs=read-write)", lockerr.Standby)
	}
	if row[15] == "t" {
		return finding{}, errPortable
	}
	return finding{
		server: Server{
			Version: version, DeadlockTimeout: deadlock, LockTable: table,
			DirectDraws: row[14] == "t",
		},
		backend: row[0],
		role:    row[5],
	}, checkSchema(row[5], row[6:12], row[12], row[13])
}

func milliseconds(text string) (time.Duration, error) {
	n, err := strconv.Atoi(text)
	return time.Duration(n) * time.Millisecond, err
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

// checkSchema takes the yes/no columns of sqlInspect from "the schema exists" on, and which functions the role may not
// call.
func checkSchema(role string, yes []string, oursMissing, theirsMissing string) error {
	role = pgx.Identifier{role}.Sanitize()
	grant := "SELECT pgbaton.grant_service('" + strings.ReplaceAll(role, "'", "''") + "')"
	for i, problem := range []string{
		"schema pgbaton does not exist in this database: run its migrations (pgbaton.Migrate, or golang-migrate on migrations/)",
		"role ROLE lacks privileges: as the owner of the schema, " + grant,
		"sequence pgbaton.token does not exist: run the migrations",
		"sequence pgbaton.token was altered, so its tokens might repeat or go back: restore INCREMENT 32, CACHE 1, NO CYCLE, " +
			"MAXVALUE 9007199254740960, bigint, LOGGED",
		"table pgbaton.incarnation is missing or is not UNLOGGED, so a lost token sequence would go unnoticed: " +
			"ALTER TABLE pgbaton.incarnation SET UNLOGGED, or run the migrations",
		"function pgbaton.schema_version does not exist: run the migrations",
	} {
		if yes[i] != "t" {
			return fmt.Errorf("%w: %s", lockerr.Schema, strings.ReplaceAll(problem, "ROLE", role))
		}
	}
	switch {
	case oursMissing != "":
		return fmt.Errorf("%w: role %s may not execute %s: as the owner of the schema, %s",
			lockerr.Schema, role, oursMissing, grant)
	case theirsMissing != "":
		return fmt.Errorf("%w: role %s may not execute %s, which PostgreSQL grants to PUBLIC unless somebody revokes it: "+
			"GRANT EXECUTE ON FUNCTION %s TO %s", lockerr.Schema, role, theirsMissing, theirsMissing, role)
	}
	return nil
}

var (
	readVersion = Command{What: "read the schema's version", SQL: "SELECT version, oldest_client FROM pgbaton.schema_version()"}
	askIdentity = Command{What: "ask which server it is", SQL: "SELECT pgbaton.server_identity()"}
)

// schemaChecks are the commands that look at the schema by its own functions. The token sequence is made sure of, see the
// migration: a crash or restart of the server ends every session, so a session that has looked once need not look again.
var schemaChecks = []Command{
	readVersion,
	askIdentity,
	{What: "check the token sequence", SQL: "SELECT repaired, last_drawn FROM pgbaton.begin_session()"},
	readRecord,
}

// check takes the answers to schemaChecks.
func (s *Session) check(answers []answer) error {
	var err error
	if s.Server.Schema, err = checkSchemaVersion(answers[0], ClientVersion); err != nil {
		return err
	}
	if err := firstFailure(schemaChecks, answers); err != nil {
		return balanced(err)
	}
	identity, err1 := answers[1].only()
	tokens, err2 := answers[2].only()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if s.Record, err = recordOf(answers[3]); err != nil {
		return err
	}
	s.Server.Identity = identity[0]
	s.Repaired = tokens[0] == "t"
	if s.Drawn, err = strconv.ParseInt(tokens[1], 10, 64); err != nil {
		return fmt.Errorf("check the token sequence: %w", err)
	}
	return nil
}

// balanced names a standby that answers where the primary has answered the look before: a pooler that balances its load sends there
// what it takes for reads.
func balanced(err error) error {
	if code := pgerr.Code(err); code != pgerr.ReadOnly && code != pgerr.FeatureNotSupported {
		return err
	}
	return fmt.Errorf("%w: a pooler sends statements of this client there: connect to the primary, or have the pooler send this "+
		"client's sessions to it: %w", lockerr.Standby, err)
}

// checkSchemaVersion returns the version of a schema that serves this client, which needs a version of its set.
func checkSchemaVersion(a answer, needs int) (int, error) {
	row, err := a.only()
	if err != nil {
		return 0, fmt.Errorf("read the schema's version: %w", pgerr.Schema(err))
	}
	version, err1 := strconv.Atoi(row[0])
	oldest, err2 := strconv.Atoi(row[1])
	switch err := errors.Join(err1, err2); {
	case err != nil:
		return 0, fmt.Errorf("%w: read its version: %w", lockerr.Schema, err)
	case version < needs:
		return 0, fmt.Errorf("%w: it has version %d, this client needs %d: run the migrations", lockerr.Schema, version, needs)
	case oldest > needs:
		return 0, fmt.Errorf("%w: it serves clients from version %d on, this one is %d: upgrade the library", lockerr.Schema, oldest, needs)
	}
	return version, nil
}
