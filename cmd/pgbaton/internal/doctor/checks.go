package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

// schema compares versions. What is missing altogether, the client has said.
func (e *examination) schema() {
	const sql = `SELECT v.version, v.oldest_client FROM pgbaton.schema_version() AS v`
	var version, oldest int
	err := e.conn.QueryRow(e.ctx, sql).Scan(&version, &oldest)
	switch code := pgerr.Code(err); {
	case code == pgerr.UndefinedSchema || code == pgerr.UndefinedFunction:
		e.add(Finding{
			Topic: "schema", Level: Error, Says: "There is no schema pgbaton in this database.",
			Do: "Run the migrations, as a role that has CREATE on the database: pgbaton migrate up",
		})
		return
	case err != nil:
		if code != pgerr.InsufficientPrivilege { // which is said below
			e.add(Finding{Topic: "schema", Level: Error, Says: fmt.Sprintf("Its version cannot be read: %v.", pgerr.Schema(err))})
		}
		return
	}
	var reason string
	e.portable = e.conn.QueryRow(e.ctx, "SELECT pgbaton.portable_reason()").Scan(&reason) == nil // which the full schema has not
	needs, set := session.ClientVersion, "It"
	if e.portable {
		needs, set = session.PortableVersion, "It is the portable one, which"
	}
	f := Finding{Topic: "schema", Says: fmt.Sprintf("%s has version %d and serves clients from version %d on; this one is %d.",
		set, version, oldest, needs)}
	switch {
	case oldest > needs:
		f.Level, f.Do = Error, "Use a newer release of the program."
	case version < needs:
		f.Level, f.Do = Error, "Run the migrations: pgbaton migrate up"
	}
	e.add(f)
}

// engine says by which engine locks exclude in this database.
func (e *examination) engine() error {
	const sql = `SELECT r.engine, r.recorded_by, r.recorded_at FROM pgbaton.engine_record() AS r`
	var engine, by string
	var at time.Time
	err := e.conn.QueryRow(e.ctx, sql).Scan(&engine, &by, &at)
	switch code := pgerr.Code(err); {
	case code == pgerr.UndefinedSchema || code == pgerr.UndefinedFunction || code == pgerr.InsufficientPrivilege:
		return nil // which is said elsewhere
	case errors.Is(err, pgx.ErrNoRows) || err == nil && engine == "":
		e.add(Finding{Topic: "engine", Says: "None is on record: the first lock records one."})
		return nil
	case err != nil:
		return err
	}
	f := Finding{Topic: "engine", Says: fmt.Sprintf("%s is on record, by %s at %s.", engine, by, at.UTC().Format(time.RFC3339))}
	if engine == "both" {
		f.Level = Warning
		f.Do = "A change of engines has begun, and each lock costs twice meanwhile: restart the services, then pgbaton migrate engine lease (or session)."
	}
	e.add(f)
	return nil
}

// privileges looks for functions that the role may not call, and for a role that may do everything.
func (e *examination) privileges() error {
	const sql = `
SELECT quote_ident(current_user),
       (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user),
       coalesce(pg_has_role(n.nspowner, 'USAGE'), false),
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       ARRAY(SELECT p.oid::regprocedure::text FROM pg_proc AS p
              WHERE p.pronamespace = n.oid AND NOT has_function_privilege(p.oid, 'EXECUTE') ORDER BY 1)
FROM pg_namespace AS n WHERE n.nspname = 'pgbaton'`
	var role string
	var super, owner, usage bool
	var refused []string
	err := e.conn.QueryRow(e.ctx, sql).Scan(&role, &super, &owner, &usage, &refused)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // there is no schema, which was said
	}
	if err != nil {
		return err
	}
	grant := "SELECT pgbaton.grant_service('" + strings.ReplaceAll(role, "'", "''") + "')"
	if !usage {
		e.add(Finding{
			Topic: "privileges", Level: Error, Says: "Role " + role + " may not use the schema pgbaton.",
			Do: "As the owner of the schema:", SQL: []string{grant},
		})
		return nil
	}
	missing, err := e.missing(refused)
	switch {
	case err != nil:
		return err
	case len(missing) > 0:
		f := Finding{
			Topic: "privileges", Level: Error, Says: fmt.Sprintf("Role %s may not call %s.", role, strings.Join(missing, ", ")),
			Do: "As the owner of the schema, all that a service needs:", SQL: []string{grant},
		}
		if len(missing) <= fewMissing {
			f.Do = "As the owner of the schema, all that a service needs, or only what is missing:"
			for _, function := range missing {
				f.SQL = append(f.SQL, "GRANT EXECUTE ON FUNCTION "+function+" TO "+role)
			}
		}
		e.add(f)
	case super || owner:
		e.add(Finding{
			Topic: "privileges", Says: "Role " + role + " is a superuser or owns the schema, and may do everything.",
			Do:  "A service should log in as a role of its own, so that others are safe from it; as the owner, for a role named service:",
			SQL: []string{"SELECT pgbaton.grant_service('service')"},
		})
	default:
		e.add(Finding{Topic: "privileges", Says: "Role " + role + " has what a service needs."})
	}
	return nil
}

// fewMissing is how many functions are granted one by one, rather than all by one call.
const fewMissing = 10

// missing returns those of the refused functions that a service calls.
func (e *examination) missing(refused []string) ([]string, error) {
	const sql = `SELECT f.name FROM pgbaton.function_sets() AS f WHERE f.set IN ('service', 'everybody')`
	if len(refused) == 0 {
		return nil, nil
	}
	rows, err := e.conn.Query(e.ctx, sql)
	if err != nil {
		return nil, err
	}
	needed, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(refused, func(function string) bool {
		name, _, _ := strings.Cut(strings.TrimPrefix(function, "pgbaton."), "(")
		return !slices.Contains(needed, name)
	}), nil
}

// connections compares what the replicas open with what the server has.
func (e *examination) connections() error {
	const sql = `
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
       (SELECT sum(d.numbackends) FROM pg_stat_database AS d)::int`
	var most, taken int
	if err := e.conn.QueryRow(e.ctx, sql).Scan(&most, &taken); err != nil {
		return err
	}
	need := e.Replicas * e.MaxConns
	f := Finding{Topic: "connections", Says: fmt.Sprintf("The server takes %d, and has %d now. At %d replicas the service opens %d at the most, and one each while it only holds.",
		most, taken, e.Replicas, need)}
	if need > most-taken {
		f.Level = Warning
		f.Do = "Raise max_connections, or lower Config.MaxConns; say how many replicas there are by --replicas."
	}
	e.add(f)
	return nil
}

// lockTable looks at how full the server's lock table is.
func (e *examination) lockTable() error {
	const sql = `
SELECT current_setting('max_locks_per_transaction')::bigint
           * (SELECT sum(current_setting(name, true)::bigint)
                FROM unnest(ARRAY['max_connections', 'max_prepared_transactions', 'autovacuum_max_workers',
                                  'autovacuum_worker_slots', 'max_worker_processes', 'max_wal_senders']) AS name),
       (SELECT count(*) FROM pg_locks AS l WHERE NOT l.fastpath)`
	var room, taken int64
	if err := e.conn.QueryRow(e.ctx, sql).Scan(&room, &taken); err != nil {
		return err
	}
	const fullShare, highShare = 70, 40 // above the first, clients are refused
	f := Finding{Topic: "lock table", Says: fmt.Sprintf("%d of about %d places are taken; a client may hold %d locks.", taken, room, room/8)}
	switch share := taken * 100 / max(room, 1); {
	case share >= fullShare:
		f.Level, f.Do = Error, "New locks are refused, and a full table refuses logins to everybody: raise max_locks_per_transaction, which needs a restart, or find who holds so many (pg_locks)."
	case share >= highShare:
		f.Level, f.Do = Warning, "Above 70 % new locks are refused: raise max_locks_per_transaction, which needs a restart."
	}
	e.add(f)
	return nil
}

// waiting looks at the settings of waits for locks.
func (e *examination) waiting() error {
	const sql = `
SELECT current_setting('log_lock_waits') = 'on',
       (extract(epoch FROM current_setting('deadlock_timeout')::interval) * 1000)::bigint`
	var logs bool
	var deadlock int64
	if err := e.conn.QueryRow(e.ctx, sql).Scan(&logs, &deadlock); err != nil {
		return err
	}
	f := Finding{Topic: "waiting", Says: fmt.Sprintf("deadlock_timeout is %v. The library's own waits are shorter and write nothing into the log.",
		time.Duration(deadlock)*time.Millisecond)}
	const least = 100
	switch {
	case deadlock < least:
		f.Level, f.Do = Warning, "Waits for locks are cut into slices of less than deadlock_timeout, so a small one costs statements: 1s is PostgreSQL's default."
	case !logs:
		f.Do = "log_lock_waits is off: with it, the server's log has the waits for rows and tables that last longer."
	}
	e.add(f)
	return nil
}

// clock compares the clocks.
func (e *examination) clock() error {
	before := time.Now()
	var server time.Time
	if err := e.conn.QueryRow(e.ctx, `SELECT clock_timestamp()`).Scan(&server); err != nil {
		return err
	}
	trip := time.Since(before)
	off := server.Sub(before.Add(trip / 2))
	const most = 5 * time.Second
	f := Finding{Topic: "clock", Says: fmt.Sprintf("The server's is %v from this machine's, give or take %v.",
		off.Round(time.Millisecond), (trip / 2).Round(time.Microsecond))}
	if off.Abs() > most+trip {
		f.Level = Warning
		f.Do = "Locks do not mind, since the database's clock decides; but logs and schedules do: set the clocks by NTP."
	}
	e.add(f)
	return nil
}

// roundTrip measures what a lock costs twice.
func (e *examination) roundTrip() error {
	const rounds = 15
	trips := make([]time.Duration, rounds)
	for i := range trips {
		before := time.Now()
		if _, err := e.conn.Exec(e.ctx, "SELECT 1"); err != nil {
			return err
		}
		trips[i] = time.Since(before)
	}
	slices.Sort(trips)
	median, worst := trips[rounds/2], trips[rounds-1]
	f := Finding{Topic: "round trip", Says: fmt.Sprintf("%v in the median of %d, %v at most. To acquire and to release costs one each.",
		median.Round(time.Microsecond), rounds, worst.Round(time.Microsecond))}
	const slow, share = 50 * time.Millisecond, 5
	switch {
	case worst*share > e.TTL:
		f.Level, f.Do = Error, fmt.Sprintf("The TTL is %v and must be at least %d times that: raise it.", e.TTL, share)
	case median > slow:
		f.Level, f.Do = Warning, "Run the service nearer to its database."
	}
	e.add(f)
	return nil
}

// idleTransactions looks for sessions that keep others waiting.
func (e *examination) idleTransactions() error {
	const sql = `
SELECT count(*) FILTER (WHERE a.state IS NOT NULL OR a.backend_type <> 'client backend'),
       count(*) FILTER (WHERE a.state IS NULL AND a.backend_type IS NULL),
       coalesce(string_agg(format('process %s (%s, %s) for %s s', a.pid, coalesce(a.usename, '?'), coalesce(nullif(a.application_name, ''), 'no name'),
                           round(extract(epoch FROM clock_timestamp() - a.state_change))), '; ' ORDER BY a.state_change)
                FILTER (WHERE a.state IN ('idle in transaction', 'idle in transaction (aborted)')
                          AND a.state_change < clock_timestamp() - interval '1 minute'), '')
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()`
	var seen, hidden int64
	var idle string
	if err := e.conn.QueryRow(e.ctx, sql).Scan(&seen, &hidden, &idle); err != nil {
		return err
	}
	f := Finding{Topic: "idle transactions", Says: "No session has been idle in a transaction for a minute."}
	if idle != "" {
		f.Level, f.Says = Warning, "Idle in a transaction: "+idle+"."
		f.Do = "They keep their row locks, the locks of AcquireTx, and VACUUM waiting: end them by pg_terminate_backend, and set idle_in_transaction_session_timeout."
	}
	if hidden > 0 {
		f.Says += fmt.Sprintf(" %d sessions of other roles cannot be looked into.", hidden)
		if f.Do == "" {
			f.Do = "To see them, as a superuser: GRANT pg_read_all_stats to this role."
		}
	}
	e.add(f)
	return nil
}

// preparedTransactions looks for those that were forgotten.
func (e *examination) preparedTransactions() error {
	const sql = `
SELECT coalesce(string_agg(quote_literal(p.gid), ', ' ORDER BY p.prepared), '')
FROM pg_prepared_xacts AS p WHERE p.database = current_database() AND p.prepared < clock_timestamp() - interval '1 hour'`
	var old string
	if err := e.conn.QueryRow(e.ctx, sql).Scan(&old); err != nil {
		return err
	}
	if old == "" {
		e.add(Finding{Topic: "prepared transactions", Says: "None is older than an hour."})
		return nil
	}
	e.add(Finding{
		Topic: "prepared transactions", Level: Warning, Says: "Older than an hour: " + old + ".",
		Do: "They keep their locks through restarts. COMMIT PREPARED or ROLLBACK PREPARED them.",
	})
	return nil
}

// rows looks at how much is in the schema's tables, by the server's estimates: no right on the tables is needed.
func (e *examination) rows() error {
	const sql = `
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgbaton' AND c.relkind = 'r'`
	var rows, bytes int64
	if err := e.conn.QueryRow(e.ctx, sql).Scan(&rows, &bytes); err != nil {
		return err
	}
	const many, mebi = 100_000, 1 << 20
	f := Finding{Topic: "rows", Says: fmt.Sprintf("About %d in the schema's tables, %.1f MiB.", rows, float64(bytes)/mebi)}
	if rows > many || bytes > many*1000 {
		f.Level, f.Do, f.SQL = Warning, "Forget what is old, as an operator:", []string{"SELECT * FROM pgbaton.prune('30 days')"}
	}
	e.add(f)
	return nil
}
