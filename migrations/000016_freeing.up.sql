-- Freeing by operators: one lock or permit of one holder, which is asked to give it back. The row of the request decides; the
-- notification only says that there may be one, so a notification alone frees nothing.
--
-- Locks: creates new objects and replaces functions; waits for nobody.

-- One row a freeing, for 90 days.
CREATE TABLE pgbaton.freeing (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    number      bigint      NOT NULL UNIQUE,
    asked_at    timestamptz NOT NULL,
    asked_by    text        NOT NULL,
    reason      text        NOT NULL,
    holder      bigint      NOT NULL,
    client      text        NOT NULL,
    kind        text        NOT NULL CHECK (kind IN ('lock', 'permit')),
    name        text        NOT NULL,
    key         bigint      NOT NULL,
    pair        boolean     NOT NULL,
    token       bigint      NOT NULL,
    outcome     text        CHECK (outcome IN ('freed', 'gone', 'session ended', 'lapses', 'not answered')),
    answered_at timestamptz
);

CREATE INDEX freeing_open ON pgbaton.freeing (holder) WHERE outcome IS NULL;

COMMENT ON COLUMN pgbaton.freeing.number IS 'that the operator''s client has chosen, so that a request whose answer was lost is not made twice';
COMMENT ON COLUMN pgbaton.freeing.holder IS 'an id of pgbaton.lock_client or pgbaton.holder';
COMMENT ON COLUMN pgbaton.freeing.token IS 'of the grant; 0: whatever the holder has of the key';
COMMENT ON COLUMN pgbaton.freeing.outcome IS 'NULL: the holder is being asked; gone: it no longer had it; lapses: it cannot renew it, and loses it when it expires';

-- Asks the holder of a lock or a permit to give it back, and returns the id of the request. It is the same request, if it has the same
-- number. For operators.
CREATE FUNCTION pgbaton.request_free(
    number bigint, holder bigint, client text, kind text, name text, key bigint, pair boolean, token bigint, reason text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made bigint;
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.request_free');
    IF (octet_length(client) <= 512 AND octet_length(name) <= 512 AND octet_length(reason) <= 1000) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.request_free: a name has at most 512 bytes, a reason 1,000' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    DELETE FROM pgbaton.freeing AS f WHERE f.id IN (
        SELECT o.id FROM pgbaton.freeing AS o WHERE o.asked_at < clock_timestamp() - interval '90 days' LIMIT 1000 FOR UPDATE SKIP LOCKED);
    PERFORM set_config('synchronous_commit', 'local', true); -- the record is to outlive a crash
    INSERT INTO pgbaton.freeing AS f (number, asked_at, asked_by, reason, holder, client, kind, name, key, pair, token)
    VALUES (request_free.number, clock_timestamp(), pgbaton.session_role()::regrole::text, request_free.reason, request_free.holder, request_free.client,
            request_free.kind, request_free.name, request_free.key, request_free.pair, request_free.token)
    ON CONFLICT ON CONSTRAINT freeing_number_key DO NOTHING
    RETURNING f.id INTO made;
    IF NOT FOUND THEN
        SELECT f.id INTO made FROM pgbaton.freeing AS f WHERE f.number = request_free.number;
    END IF;
    PERFORM pg_notify(c, 'free/' || holder) FROM unnest('{pgbaton, pgbaton_free, pgbaton_lease}'::text[]) AS c;
    RETURN made;
END;
$$;

-- Whether the session may speak for a holder: it is of the same service.
CREATE FUNCTION pgbaton.speaks_for(holder bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me CONSTANT regrole := pgbaton.service();
BEGIN
    RETURN EXISTS (
        SELECT FROM pgbaton.sessions AS s
         WHERE s.id = speaks_for.holder
           AND CASE WHEN s.role IS NULL THEN pgbaton.serves(s.service::regrole)
                    WHEN me IS NULL THEN s.role = pgbaton.session_role()
                    ELSE pg_has_role(s.role, me::oid, 'MEMBER') END);
END;
$$;

-- The requests to holders that the session speaks for. An operator waits for some seconds: a request that is older was left behind by one
-- that died, or was cut off.
CREATE FUNCTION pgbaton.look_free(holders bigint[]) RETURNS TABLE (
    id bigint, holder bigint, kind text, name text, key bigint, pair boolean, token bigint, said text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT f.id, f.holder, f.kind, f.name, f.key, f.pair, f.token, 'by ' || f.asked_by || coalesce(': ' || nullif(f.reason, ''), '')
      FROM pgbaton.freeing AS f
     WHERE f.outcome IS NULL AND f.asked_at > clock_timestamp() - interval '10 s' AND f.holder = ANY (holders) AND pgbaton.speaks_for(f.holder)
     ORDER BY f.id;
END;
$$;

-- Says what became of a request: the holder has given back what it was asked for, or has it no longer. What is given back is recorded also
-- when the operator has gone. False: it is too late.
CREATE FUNCTION pgbaton.answer_free(id bigint, freed boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE pgbaton.freeing AS f SET outcome = CASE WHEN freed THEN 'freed' ELSE 'gone' END, answered_at = clock_timestamp()
     WHERE f.id = answer_free.id AND (f.outcome IS NULL OR freed AND f.outcome = 'not answered') AND pgbaton.speaks_for(f.holder);
    RETURN FOUND;
END;
$$;

-- Whether a session holds an advisory lock of this database.
CREATE FUNCTION pgbaton.holds_key(process integer, key bigint, pair boolean) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
         WHERE l.locktype = 'advisory' AND l.granted AND l.pid = process AND d.datname = current_database()
           AND (l.classid::int8 << 32) | l.objid::int8 = holds_key.key AND l.objsubid = CASE WHEN holds_key.pair THEN 2 ELSE 1 END);
$$;

-- Ends the session of a holder or, where it has none, has its lease or slots not be renewed any longer; and says which, or 'gone' if what
-- was asked for is not there.
CREATE FUNCTION pgbaton.end_holder(f pgbaton.freeing) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    died   CONSTANT integer := (SELECT s.pid FROM pgbaton.sessions AS s WHERE s.id = f.holder);
    there  boolean;
BEGIN
    IF f.holder < 0 THEN
        WITH leases AS (
            UPDATE pgbaton.lease AS l SET token = -l.token
             WHERE f.kind = 'lock' AND l.key = f.key AND l.pair = f.pair AND l.holder = f.holder AND l.token > 0 AND f.token IN (0, l.token)
            RETURNING 1),
        shares AS (
            UPDATE pgbaton.lease_share AS l SET token = -l.token
             WHERE f.kind = 'lock' AND l.key = f.key AND l.pair = f.pair AND l.holder = f.holder AND l.token > 0 AND f.token IN (0, l.token)
            RETURNING 1),
        slots AS (
            UPDATE pgbaton.slot AS l SET token = -l.token FROM pgbaton.semaphore AS m
             WHERE f.kind = 'permit' AND m.name = f.name AND l.semaphore = m.id AND l.holder = f.holder AND l.token > 0
               AND (f.token = 0 OR f.token BETWEEN l.token AND l.token + 31)
            RETURNING 1)
        SELECT count(*) > 0 INTO there FROM (SELECT 1 FROM leases UNION ALL SELECT 1 FROM shares UNION ALL SELECT 1 FROM slots) AS a;
        RETURN CASE WHEN there THEN 'lapses' ELSE 'gone' END;
    END IF;
    there := CASE f.kind
        WHEN 'permit' THEN EXISTS (
            SELECT FROM pgbaton.slot AS l JOIN pgbaton.semaphore AS m ON m.id = l.semaphore
             WHERE m.name = f.name AND l.holder = f.holder AND (f.token = 0 OR f.token BETWEEN l.token AND l.token + 31))
        ELSE EXISTS (
            SELECT FROM (SELECT e.key, e.pair, e.holder, e.token FROM pgbaton.lease AS e
                         UNION ALL SELECT e.key, e.pair, e.holder, e.token FROM pgbaton.lease_share AS e) AS l
             WHERE l.key = f.key AND l.pair = f.pair AND l.holder = f.holder AND f.token IN (0, l.token)) END;
    -- The process id may be another session's by now.
    IF there THEN
        there := died IS NOT NULL AND pgbaton.holds_key(died, f.holder, false);
    ELSE
        there := died IS NOT NULL AND f.kind = 'lock' AND pgbaton.holds_key(died, f.key, f.pair);
    END IF;
    IF NOT there THEN
        RETURN 'gone';
    END IF;
    RETURN CASE WHEN pg_terminate_backend(died) THEN 'session ended' ELSE 'gone' END;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'pgbaton.settle_free: the owner of the schema may not end the session %', died USING ERRCODE = 'insufficient_privilege',
        HINT = 'GRANT pg_signal_backend to it; or, as a role that may: SELECT pg_terminate_backend(' || died || ')';
END;
$$;

-- What became of a request, NULL if the holder has not answered, or is about to. give_up then withdraws the request; with end_session the session of the
-- holder is ended, with all that is held by it, or, where it has none, its lease or slots cannot be renewed any longer. For operators.
CREATE FUNCTION pgbaton.settle_free(id bigint, give_up boolean, end_session boolean) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    f    pgbaton.freeing;
    said text := 'not answered';
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.settle_free');
    SELECT r.* INTO f FROM pgbaton.freeing AS r WHERE r.id = settle_free.id;
    IF NOT FOUND THEN
        RETURN 'gone';
    END IF;
    IF f.outcome IS NOT NULL OR NOT give_up THEN
        RETURN f.outcome;
    END IF;
    SELECT r.* INTO f FROM pgbaton.freeing AS r WHERE r.id = settle_free.id FOR UPDATE SKIP LOCKED;
    IF NOT FOUND OR f.outcome IS NOT NULL THEN
        RETURN f.outcome;
    END IF;
    IF end_session THEN
        said := pgbaton.end_holder(f);
    END IF;
    PERFORM set_config('synchronous_commit', 'local', true);
    UPDATE pgbaton.freeing AS r SET outcome = said, answered_at = clock_timestamp() WHERE r.id = f.id;
    RETURN said;
END;
$$;

-- The newest freeings, for operators.
CREATE FUNCTION pgbaton.freeings(most integer) RETURNS TABLE (
    asked_at timestamptz, asked_by text, reason text, holder bigint, client text, kind text, name text, key bigint, pair boolean, token bigint, outcome text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pgbaton.operates() THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT f.asked_at, f.asked_by, f.reason, f.holder, f.client, f.kind, f.name, f.key, f.pair, f.token, f.outcome
      FROM pgbaton.freeing AS f ORDER BY f.id DESC LIMIT most;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.function_sets() RETURNS TABLE (name text, set text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name, s.set
      FROM (VALUES
        ('everybody', '{schema_version, key, gate, function_sets, session_role, service, acts_for, operates, bump_version,
            fence_guard, engine_record}'::text[]),
        ('service', '{server_identity, tokens_trusted, repair_tokens, next_token, draw_token, begin_session, wait_for_turn,
            wait_for_turns, lock_for_transaction, fence, enlist, retire, tend, open_semaphore, claim_slots, free_slots,
            renew_slots, resize_semaphore, semaphore_state, semaphore_holders, holds_slots, compact_slots, keep_leaders,
            strike_leaders, leader_of, request_resign, begin_run, start_run, end_run, look_run, forget_run, publish_waits,
            withdraw_waits, waits, publish_locks, list_locks, look_free, answer_free, freeings, join_engine, acquire_lease, acquire_leases, release_lease, release_leases, renew_leases,
            leave_leases, tend_leases, lock_leases}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign, change_engine, request_free, settle_free}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits, prune_locks, speaks_for, holds_key, end_holder, correct_lease, dead_holders, lease_tokens, raise_tokens,
            try_key, free_key, call_next, free_leases, require_leases, client_lives, attends}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 16, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
