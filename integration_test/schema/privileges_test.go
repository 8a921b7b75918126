package schema_test

import (
	"io/fs"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

// calls has one call of each function in the schema, with its result; nil is any.
var calls = map[string]struct {
	sql    string
	result any
}{
	"schema_version()":      {"SELECT oldest_client FROM pgbaton.schema_version()", int32(1)},
	"key(text)":             {"SELECT pgbaton.key('invoice/42')", int64(-2627838530059473662)},
	"gate(bigint)":          {"SELECT pgbaton.gate(0)", int64(8099550625553935921)},
	"gate(integer,integer)": {"SELECT pgbaton.gate(0, 0)", int64(8099550625553935922)},
	"tokens_trusted()":      {"SELECT pgbaton.tokens_trusted()", true},
	"repair_tokens()":       {"SELECT pgbaton.repair_tokens()", false},
	"next_token()":          {"SELECT pgbaton.next_token()", nil},
	"draw_token()":          {"SELECT pgbaton.draw_token()", nil},
	"begin_session()":       {"SELECT repaired FROM pgbaton.begin_session()", false},
	"wait_for_turn(bigint,boolean,boolean,bigint,boolean,boolean,integer)": {
		"SELECT pgbaton.wait_for_turn(1, false, false, 2, false, true, 100)", int32(2),
	},
	"wait_for_turns(bigint[],bigint[],boolean[],integer,integer,integer)": {
		"SELECT keys_held FROM pgbaton.wait_for_turns('{5,6}', '{7,8}', '{f,t}', 0, 0, 100)", int32(2),
	},
	"lock_for_transaction(bigint,boolean,boolean,integer)": {
		"SELECT pgbaton.lock_for_transaction(1, false, false, 100)", nil,
	},
	"function_sets()":                 {"SELECT count(*) > 40 FROM pgbaton.function_sets()", true},
	"server_identity()":               {"SELECT pgbaton.server_identity() <> ''", true},
	"session_role()":                  {"SELECT pgbaton.session_role()::regrole::text = quote_ident(current_user)", true},
	"service()":                       {"SELECT pgbaton.service() IS NOT NULL", true},
	"acts_for(regrole)":               {"SELECT pgbaton.acts_for(pgbaton.service())", true},
	"operates()":                      {"SELECT pgbaton.operates()", nil},
	"grant_service(regrole)":          {"SELECT pgbaton.grant_service(current_user::regrole)", nil},
	"grant_operator(regrole)":         {"SELECT pgbaton.grant_operator(current_user::regrole)", nil},
	"record_grantee(regrole,boolean)": {"SELECT pgbaton.record_grantee(current_user::regrole, true)", nil},
	"revoke_grants(regrole)":          {"SELECT pgbaton.revoke_grants(current_user::regrole)", nil},
	"apply_grants(boolean)":           {"SELECT pgbaton.apply_grants()", nil},
	"assign(text,text,regrole)":       {"SELECT pgbaton.assign('job', 'unheard of', NULL)", false},
	"reassign(regrole,regrole)":       {"SELECT pgbaton.reassign('pg_monitor', 'pg_monitor')", int64(0)},
	"prune(interval)":                 {"SELECT count(*) FROM pgbaton.prune('1 day')", int64(4)},
	"prune_leaders(interval,bigint)":  {"SELECT pgbaton.prune_leaders('1 day', 1)", int64(0)},
	"prune_waits(bigint,bigint)":      {"SELECT pgbaton.prune_waits(1, 1)", nil},
	"refuse(text,text,regrole)":       {"SELECT CASE WHEN false THEN pgbaton.refuse('job', 'x', NULL)::text ELSE 'not' END", "not"},
	"require_operator(text)":          {"SELECT pgbaton.require_operator('x')", nil},
	"require_session(text,bigint)":    {"SELECT pgbaton.require_session('x', 4713)", nil},
	"drawn(bigint)":                   {"SELECT pgbaton.drawn(42)", true},
	"run_tolerance(interval)":         {"SELECT extract(epoch FROM pgbaton.run_tolerance('1 day'))::integer", int32(8640)},
	"record_run(text,interval,bigint,boolean,boolean,boolean)": {
		"SELECT due FROM pgbaton.record_run('yearly', '1 year', 42, false, false, true)", true,
	},
	"fence(text,bigint,boolean)": {"SELECT pgbaton.fence('invoice/42', 42)::text", ""},
	"prune_fences(interval)":     {"SELECT pgbaton.prune_fences('1 day')", int64(0)},

	"present(bigint)":                 {"SELECT pgbaton.present(4711)", false},
	"enlist(bigint,text)":             {"SELECT pgbaton.enlist(4712, 'me')::text", ""},
	"retire(bigint)":                  {"SELECT pgbaton.retire(-4712)::text", ""},
	"tend()":                          {"SELECT count(*) FROM pgbaton.tend()", int64(0)},
	"serves(regrole)":                 {"SELECT pgbaton.serves(NULL)", true},
	"has_lock(bigint)":                {"SELECT pgbaton.has_lock(4715)", false},
	"forget_holders()":                {"SELECT pgbaton.forget_holders() >= 0", true},
	"require_holder(bigint)":          {"SELECT pgbaton.require_holder(-4712)::text", ""},
	"require_semaphore(text,regrole)": {"SELECT pgbaton.require_semaphore('s', NULL)::text", ""},
	"reclaim_slots(integer)":          {"SELECT pgbaton.reclaim_slots(0)", int32(0)},
	"prune_semaphores(interval)":      {"SELECT pgbaton.prune_semaphores('30 days')", int64(0)},
	"open_semaphore(text,integer,integer)": {
		"SELECT capacity FROM pgbaton.open_semaphore('calls', 5, 0)", int32(5),
	},
	"open_semaphore(text,integer)": {
		"SELECT capacity FROM pgbaton.open_semaphore('calls', 5)", int32(5),
	},
	"settle_semaphore(integer)": {sqlCalled + "pgbaton.settle_semaphore(m.id) AS result", int32(0)},
	"claim_slots(integer,bigint,bigint,integer[],integer,boolean,integer,boolean)": {
		sqlCalled + "pgbaton.claim_slots(m.id, pgbaton.key('pgbaton/semaphore/calls'), -1, '{1,2}', 1000, false, 100, true) AS c(capacity, result, slots, token)", int32(2),
	},
	"claim_slots_anywhere(integer,bigint,bigint,integer[],integer,boolean,integer,boolean)": {
		sqlCalled + "pgbaton.claim_slots_anywhere(m.id, pgbaton.key('pgbaton/semaphore/calls'), -1, '{1}', 1000, false, 0, false) AS c(capacity, result, slots, token)", int32(1),
	},
	"free_slots_anywhere(bigint,integer[],integer[],bigint[],bigint[])": {
		sqlCalled + "pgbaton.free_slots_anywhere(-1, '{1}', '{1}', '{1}', '{3}') AS c(result, awaited)", nil,
	},
	"pick_slots(integer,integer[])": {sqlCalled + "coalesce(cardinality(pgbaton.pick_slots(m.id, '{1}')), 0) AS result", nil},
	"free_slots(bigint,integer[],integer[],bigint[],bigint[])": {
		sqlCalled + "coalesce(cardinality((pgbaton.free_slots(-1, '{1,1}', '{1,2}', '{1,1}', '{3,4}')).freed), 0) AS result", int32(0),
	},
	"renew_slots(bigint,integer[],integer[],bigint[],integer,boolean)": {
		sqlCalled + "cardinality(pgbaton.renew_slots(-1, '{1,1}', '{1,2}', '{1,1}', 1000, true)) AS result", nil,
	},
	"resize_semaphore(integer,integer)": {sqlCalled + "pgbaton.resize_semaphore(m.id, 5) AS result", int32(5)},
	"semaphore_state(integer)": {
		sqlCalled + "pgbaton.semaphore_state(m.id) AS c(result, available)", int32(5),
	},
	"semaphore_holders(integer)": {
		"SELECT count(*) FROM pgbaton.open_semaphore('calls', 5) AS m, pgbaton.semaphore_holders(m.id)", nil,
	},
	"holds_slots(integer,bigint,integer[],bigint)": {sqlCalled + "pgbaton.holds_slots(m.id, -1, '{1}', 1) AS result", false},
	"compact_slots(bigint)":                        {"SELECT pgbaton.compact_slots(524288)", false},
	"keep_leaders(text[],bigint[],bigint,text)": {
		"SELECT count(*) FROM pgbaton.keep_leaders('{scheduler,mail}', '{42,43}', 1, 'me')", int64(0),
	},
	"leader_of(text)":                 {"SELECT count(*) FROM pgbaton.leader_of('scheduler')", nil},
	"request_resign(text)":            {"SELECT count(pgbaton.request_resign('scheduler'))", nil},
	"strike_leaders(text[],bigint[])": {"SELECT pgbaton.strike_leaders('{scheduler,mail}', '{42,43}')::text", ""},
	"begin_run(text,interval,bigint)": {"SELECT due FROM pgbaton.begin_run('nightly', '1 hour', 42)", true},
	"start_run(text,interval,bigint,boolean,boolean)": {
		"SELECT disbelieved FROM pgbaton.start_run('hourly', '1 hour', 42, true, true)", false,
	},
	"end_run(text,bigint,boolean,text)": {"SELECT pgbaton.end_run('weekly', 42, true, 'x')", false},
	"look_run(text)":                    {"SELECT count(*) FROM pgbaton.look_run('weekly')", int64(0)},
	"forget_run(text)":                  {"SELECT pgbaton.forget_run('weekly')", false},

	"publish_waits(bigint,text[],bigint[],boolean[],boolean[],integer[],bigint[],boolean[],boolean[])": {
		"SELECT cardinality(pgbaton.publish_waits(4714, '{k,l}', '{1,5}', '{f,f}', '{t,f}', '{2,0}', '{2,3}', '{f,t}', '{t,f}'))", int32(2),
	},
	"engine_record()":                             {"SELECT count(*) FROM pgbaton.engine_record()", nil},
	"join_engine(bigint,text,text,integer)":       {"SELECT pgbaton.join_engine(4714, 'both', 'me', NULL)::text", ""},
	"change_engine(text)":                         {"SELECT count(pgbaton.change_engine('both'))", nil},
	"tend_leases()":                               {"SELECT pgbaton.tend_leases()::text", ""},
	"leave_leases(bigint)":                        {"SELECT pgbaton.leave_leases(4715)::text", ""},
	"lock_leases(bigint[],boolean[])":             {"SELECT pgbaton.lock_leases('{1,2}', '{f,t}')::text", ""},
	"release_lease(bigint,bigint,boolean,bigint)": {"SELECT pgbaton.release_lease(4714, 1, false, 2)", false},
	"acquire_lease(bigint,integer,bigint,boolean,integer,integer,text)": {
		"SELECT pgbaton.acquire_lease(4714, 1000, 11, true, 1, 2) > 0", true,
	},
	"acquire_leases(bigint,integer,bigint[],boolean[],boolean[],integer[],integer[],integer[],boolean,text[])": {
		"SELECT count(*) FROM pgbaton.acquire_leases(4714, 1000, '{12,12}', '{f,t}', '{t,f}', '{0,1}', '{1,2}', '{-1,5}', true)", int64(2),
	},
	"release_leases(bigint,bigint[],boolean[],boolean[],bigint[],boolean)": {
		"SELECT count(*) FROM pgbaton.release_leases(4714, '{13}', '{f}', '{t}', '{1}', true)", int64(0),
	},
	"renew_leases(bigint,integer,bigint[],boolean[],boolean[],bigint[],bigint[],boolean)": {
		"SELECT count(*) FROM pgbaton.renew_leases(4715, 1000, '{14}', '{f}', '{f}', '{1}', '{}', true)", int64(0),
	},
	"correct_lease(bigint,boolean)":            {"SELECT pgbaton.correct_lease(15, false)::text", ""},
	"dead_holders(bigint[],boolean[])":         {"SELECT cardinality(pgbaton.dead_holders('{16}', '{f}'))", int32(0)},
	"lease_tokens(bigint,integer,boolean)":     {"SELECT drawn FROM pgbaton.lease_tokens(1, 5, false)", int32(5)},
	"raise_tokens(bigint)":                     {"SELECT pgbaton.raise_tokens(1)::text", ""},
	"try_key(bigint,boolean,boolean)":          {"SELECT pgbaton.try_key(17, true, true)", true},
	"free_key(bigint,boolean,boolean)":         {"SELECT pgbaton.free_key(18, true, true)", false},
	"free_leases(bigint[],bigint[],boolean[])": {"SELECT pgbaton.free_leases('{4715}', '{}', '{}')::text", ""},
	"attends(bigint)":                          {"SELECT pgbaton.attends(-4716)", false},
	"client_lives(pgbaton.lock_client)": {
		"SELECT pgbaton.client_lives(ROW(1, 'lease', '', NULL, now(), now())::pgbaton.lock_client)", false,
	},
	"require_leases()": {"SELECT pgbaton.require_leases()::text", ""},
	"call_next(bigint,boolean,bigint,timestamp with time zone)": {"SELECT pgbaton.call_next(19, true, 4715, now() + '1 hour')::text", ""},
	"publish_locks(bigint,bigint,bigint[],text,text,integer,bigint,boolean,boolean,bigint[],bigint[],boolean[],text[],text[],bigint[],boolean[]," +
		"boolean[],integer[],bigint[],bigint[])": {
		"SELECT cardinality(pgbaton.publish_locks(5, 1, '{4714}', 'me', 'here', 42, 0, true, true, '{}', '{4714,4714}', '{f,t}', '{lock,permit}', " +
			"'{a,\"\"}', '{1,0}', '{f,f}', '{f,f}', '{1,2}', '{7,0}', '{1000,0}'))", int32(2),
	},
	"request_free(bigint,bigint,text,text,text,bigint,boolean,bigint,text)": {
		"SELECT pgbaton.request_free(1, 4714, 'me', 'lock', 'x', 1, false, 0, 'why') > 0", true,
	},
	"look_free(bigint[])":                 {"SELECT count(*) FROM pgbaton.look_free('{4718}')", int64(0)},
	"answer_free(bigint,boolean)":         {"SELECT pgbaton.answer_free(-1, true)", false},
	"settle_free(bigint,boolean,boolean)": {"SELECT pgbaton.settle_free(-1, true, true)", "gone"},
	"freeings(integer)":                   {"SELECT count(*) >= 0 FROM pgbaton.freeings(10)", true},
	"holds_key(integer,bigint,boolean)":   {"SELECT pgbaton.holds_key(1, 4714, false)", false},
	"end_holder(pgbaton.freeing)":         {"SELECT pgbaton.end_holder(NULL)", "gone"},
	"speaks_for(bigint)":                  {"SELECT pgbaton.speaks_for(4719)", nil},
	"list_locks(boolean)":                 {"SELECT count(*) >= 0 FROM pgbaton.list_locks(true)", true},
	"prune_locks(bigint)":                 {"SELECT pgbaton.prune_locks(1) >= 0", true},
	"withdraw_waits(bigint,bigint[])":     {"SELECT pgbaton.withdraw_waits(-2, NULL) + pgbaton.withdraw_waits(-2, '{1}')", int32(0)},
	"waits(bigint,bigint)":                {"SELECT count(*) FROM pgbaton.waits() UNION ALL SELECT count(*) FROM pgbaton.waits(4714, 1) LIMIT 1", nil},
}

// sqlCalled begins a call with a semaphore.
const sqlCalled = "SELECT result FROM pgbaton.open_semaphore('calls', 5) AS m, "

// functions lists the functions in the schema that are in a set, as they are written in calls. Triggers are called by
// tables.
func functions(t *testing.T, conn *pgx.Conn, sets ...string) []string {
	t.Helper()
	const sqlFunctions = `
SELECT format('%s(%s)', proname, coalesce((
    SELECT string_agg(format_type(type, NULL), ',' ORDER BY i)
    FROM unnest(proargtypes::oid[]) WITH ORDINALITY AS a (type, i)), ''))
FROM pg_proc LEFT JOIN pgbaton.function_sets() AS f ON f.name = proname
WHERE pronamespace = 'pgbaton'::regnamespace AND prorettype <> 'trigger'::regtype AND f.set = ANY ($1)`
	rows, err := conn.Query(t.Context(), sqlFunctions, sets)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

// callAll calls every function in the schema and looks at the results.
func callAll(t *testing.T, conn *pgx.Conn, names []string) {
	t.Helper()
	require.NotEmpty(t, names)
	for _, name := range names {
		call, known := calls[name]
		require.True(t, known, "add a call of pgbaton.%s", name)
		result := testkit.Value[any](t, conn, call.sql)
		if call.result != nil {
			require.Equal(t, call.result, result, name)
		}
	}
}

// The documented grants are enough, and give no more, also where the installation has defaults of its own.
func TestSchema_GrantsSuffice(t *testing.T) {
	t.Parallel()
	for _, defaults := range []string{
		"",
		"ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
		"ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC",
	} {
		t.Run(defaults, func(t *testing.T) {
			t.Parallel()
			role, operator := testkit.Role(t), testkit.Role(t)
			dsn := testkit.Empty(t)
			owner := testkit.Connect(t, dsn)
			testkit.Exec(t, owner, defaults)
			require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn)))
			testkit.Exec(t, owner, "SELECT pgbaton.grant_service('"+role+"'), pgbaton.grant_operator('"+operator+"')")

			app := testkit.Connect(t, testkit.As(t, dsn, role))
			nextToken(t, app) // repairs
			callAll(t, app, functions(t, owner, "everybody", "service"))
			callAll(t, testkit.Connect(t, testkit.As(t, dsn, operator)), functions(t, owner, "operator"))
			for _, name := range functions(t, owner, "operator", "internal") {
				if name == "refuse(text,text,regrole)" { // its call in calls does not come to it
					continue
				}
				_, err := app.Exec(t.Context(), calls[name].sql)
				require.ErrorContains(t, err, "permission denied for function", name)
			}
			_, err := app.Exec(t.Context(), "SELECT setval('pgbaton.token', 32)")
			require.ErrorContains(t, err, "permission denied")
			for _, table := range []string{
				"incarnation", "fence", "holder", "semaphore", "slot", "leader", "last_run", "registry", "freeing", "grantee",
				"lease", "lease_share", "lease_floor", "lock_engine", "lock_client",
			} {
				_, err = app.Exec(t.Context(), "DELETE FROM pgbaton."+table)
				require.ErrorContains(t, err, "permission denied")
			}
		})
	}
}

// evil is a schema with what the functions use, each raising an error, and with overloads that would
// win over the real ones for untyped literals.
const evil = `
CREATE SCHEMA evil;
CREATE FUNCTION evil.trap() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.nextval(text) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.setval(regclass, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.setval(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.current_database() RETURNS name LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::name';
CREATE FUNCTION evil.octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1';
CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.date_part(text, timestamptz) RETURNS float8 LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::float8';
CREATE FUNCTION evil.to_timestamp(float8) RETURNS timestamptz LANGUAGE sql AS 'SELECT evil.trap(); SELECT pg_catalog.now()';
CREATE FUNCTION evil.pg_sleep(float8) RETURNS void LANGUAGE sql AS 'SELECT evil.trap()';
CREATE FUNCTION evil.same(float8, float8) RETURNS boolean LANGUAGE sql AS 'SELECT evil.trap(); SELECT false';
CREATE FUNCTION evil.sum(float8, float8) RETURNS float8 LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::float8';
CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT evil.trap(); SELECT pg_catalog.now()';
CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT evil.trap(); SELECT pg_catalog.now()';
CREATE FUNCTION evil.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql AS 'SELECT evil.trap(); SELECT pg_catalog.now()';
CREATE FUNCTION evil.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''on''::text';
CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::text';
CREATE FUNCTION evil.pg_advisory_lock(bigint) RETURNS void LANGUAGE sql AS 'SELECT evil.trap()';
CREATE FUNCTION evil.pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS 'SELECT evil.trap()';
CREATE FUNCTION evil.pg_try_advisory_xact_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT evil.trap(); SELECT true';
CREATE FUNCTION evil.pg_advisory_unlock_all() RETURNS void LANGUAGE sql AS 'SELECT evil.trap()';
CREATE FUNCTION evil.convert_to(text, name) RETURNS bytea LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::bytea';
CREATE FUNCTION evil.convert_to(text, text) RETURNS bytea LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::bytea';
CREATE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::bytea';
CREATE FUNCTION evil.substr(bytea, integer, integer) RETURNS bytea LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::bytea';
CREATE FUNCTION evil.encode(bytea, text) RETURNS text LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::text';
CREATE FUNCTION evil.same(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.trap(); SELECT false';
CREATE FUNCTION evil.same(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT evil.trap(); SELECT false';
CREATE FUNCTION evil.same(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT evil.trap(); SELECT false';
CREATE FUNCTION evil.bits(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.bits(bigint, integer) RETURNS bigint LANGUAGE sql AS 'SELECT evil.trap(); SELECT 1::bigint';
CREATE FUNCTION evil.glue(text, text) RETURNS text LANGUAGE sql AS 'SELECT evil.trap(); SELECT ''''::text';
CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = oid, RIGHTARG = oid);
CREATE OPERATOR evil.<> (FUNCTION = evil.same, LEFTARG = oid, RIGHTARG = oid);
CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = timestamptz, RIGHTARG = timestamptz);
CREATE OPERATOR evil.<= (FUNCTION = evil.same, LEFTARG = timestamptz, RIGHTARG = timestamptz);
CREATE OPERATOR evil.> (FUNCTION = evil.same, LEFTARG = timestamptz, RIGHTARG = timestamptz);
CREATE OPERATOR evil.+ (FUNCTION = evil.sum, LEFTARG = float8, RIGHTARG = float8);
CREATE OPERATOR evil./ (FUNCTION = evil.sum, LEFTARG = float8, RIGHTARG = float8);
CREATE OPERATOR evil.>= (FUNCTION = evil.same, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR evil.# (FUNCTION = evil.bits, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR evil.| (FUNCTION = evil.bits, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR evil.& (FUNCTION = evil.bits, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR evil.<< (FUNCTION = evil.bits, LEFTARG = bigint, RIGHTARG = integer);
CREATE OPERATOR evil.>> (FUNCTION = evil.bits, LEFTARG = bigint, RIGHTARG = integer);
CREATE OPERATOR evil.|| (FUNCTION = evil.glue, LEFTARG = text, RIGHTARG = text);
GRANT USAGE ON SCHEMA evil TO PUBLIC;
`

func TestSchema_HostileSearchPath(t *testing.T) {
	t.Parallel()

	t.Run("OfTheCaller", func(t *testing.T) {
		t.Parallel()
		ownerURL, appURL := newDatabase(t)
		owner, app := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
		names := functions(t, owner, "everybody", "service")
		testkit.Exec(t, owner, evil)
		testkit.Exec(t, app, `
CREATE TEMP TABLE fence (resource text, token bigint, seen_at timestamptz);
CREATE TEMP TABLE leader (name text PRIMARY KEY, holder bigint, holder_name text, term bigint, since timestamptz);
CREATE TEMP TABLE last_run (resource text PRIMARY KEY, token bigint, ran_at timestamptz);
CREATE TEMP TABLE pg_database (oid oid, datname name);
CREATE TEMP TABLE incarnation (singleton boolean, database oid, relation oid, started timestamptz, token_floor bigint);
CREATE TEMP TABLE token (last_value bigint);
SET search_path = pg_temp, evil, pg_catalog`)
		_, err := app.Exec(t.Context(), "SELECT now()")
		require.ErrorContains(t, err, "trapped")
		before := nextToken(t, app) // repairs
		callAll(t, app, names)
		require.Greater(t, nextToken(t, app), before)
	})

	// What is in the body of a function is settled when the file is run.
	migrate := func(t *testing.T, dsn string) {
		t.Helper()
		require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn)))
	}
	byHand := func(t *testing.T, dsn string) {
		t.Helper()
		conn := testkit.Connect(t, dsn)
		names, err := fs.Glob(migrations.FS, "*.up.sql") // in the order of their numbers
		require.NoError(t, err)
		for _, name := range names {
			file, err := fs.ReadFile(migrations.FS, name)
			require.NoError(t, err)
			testkit.Exec(t, conn, string(file))
		}
	}
	for name, c := range map[string]struct {
		searchPath string
		apply      func(*testing.T, string)
	}{
		"OfTheMigratingRole":                 {"evil,public", migrate},
		"OfTheMigratingRole/BeforePgCatalog": {"evil,pg_catalog", migrate},
		"OfTheMigratingRole/ByHand":          {"evil,public", byHand},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			conn := testkit.Connect(t, dsn)
			testkit.Exec(t, conn, evil)
			c.apply(t, testkit.With(t, dsn, "search_path", c.searchPath))
			nextToken(t, conn)
			callAll(t, conn, functions(t, conn, "everybody", "service", "operator", "internal"))
		})
	}
}

// A type of the caller's with the name of one that a function uses is not taken for it: its checks would run as the
// schema's owner.
func TestSchema_HostileTypes(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	app := testkit.Connect(t, appURL)
	testkit.Exec(t, testkit.Connect(t, ownerURL), "SELECT pgbaton.open_semaphore('s', 5); UPDATE pgbaton.semaphore SET service = NULL")
	testkit.Exec(t, app, `CREATE FUNCTION pg_temp.trap(anyelement) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$`)
	for _, name := range []string{
		"record", "bigint", "int8", "integer", "int4", "boolean", "bool", "text", "regclass", "timestamptz", "interval", "name", "numeric",
		"float8", "oid",
	} {
		testkit.Exec(t, app, `CREATE DOMAIN pg_temp."`+name+`" AS pg_catalog.text CHECK (pg_temp.trap(value))`)
	}
	for _, path := range []string{`"$user", public`, "pg_temp, pg_catalog", "pg_catalog, pg_temp"} {
		testkit.Exec(t, app, "SET search_path = "+path)
		for _, call := range []string{
			"claim_slots(1, pgbaton.key('pgbaton/semaphore/s'), -5, '{1}', 1000, false, 0, false)", "claim_slots(1, pgbaton.key('pgbaton/semaphore/s'), -5, '{2,1}', 1000, false, 9, true)",
			"draw_token()", "next_token()", "free_slots(-5, '{1}', '{1}', '{32}', '{7}')", "free_slots(-5, '{1,1}', '{1,2}', '{32,32}', '{7,7}')",
		} {
			testkit.Exec(t, app, "SELECT FROM pgbaton."+call)
		}
	}
}

// With an old snapshot the slots would be written as they were.
func TestSchema_CompactSlots(t *testing.T) {
	t.Parallel()
	dsn, _ := newDatabase(t)
	conn, other := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	testkit.Exec(t, conn, "SELECT pgbaton.open_semaphore('s', 10)")
	testkit.Exec(t, conn, "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pgbaton.semaphore")
	testkit.Exec(t, other, "UPDATE pgbaton.slot SET holder = -1, expires_at = 'infinity'")
	require.Nil(t, testkit.Value[any](t, conn, "SELECT pgbaton.compact_slots(0)"))
	testkit.Exec(t, conn, "COMMIT")
	require.Equal(t, int64(10), testkit.Value[any](t, conn, "SELECT count(*) FROM pgbaton.slot WHERE holder = -1"))

	// Many slots are not too much.
	testkit.Exec(t, conn, "SELECT pgbaton.open_semaphore('many', 10000)")
	require.Equal(t, false, testkit.Value[any](t, conn, "SELECT pgbaton.compact_slots(524288)"))
	testkit.Exec(t, conn, "DELETE FROM pgbaton.semaphore WHERE name = 'many'")
	testkit.Exec(t, other, "BEGIN; SELECT count(*) FROM pgbaton.slot")
	require.Nil(t, testkit.Value[any](t, conn, "SELECT pgbaton.compact_slots(524288)"), "somebody is in it")
	testkit.Exec(t, other, "COMMIT")
	require.Equal(t, true, testkit.Value[any](t, conn, "SELECT pgbaton.compact_slots(524288)"))
	require.Equal(t, int64(10), testkit.Value[any](t, conn, "SELECT count(*) FROM pgbaton.slot"))
}
