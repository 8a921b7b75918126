-- Locks are advisory locks again, and nothing says so: clients of leases must be gone.
CREATE OR REPLACE FUNCTION pgbaton.require_session(call text, holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (holder > 0 AND pg_try_advisory_xact_lock(holder)) IS NOT TRUE THEN
        RAISE EXCEPTION '%: the holder % is not this session', call, coalesce(holder::text, 'NULL')
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A session becomes a holder by pgbaton.enlist.';
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.require_holder(holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole;
BEGIN
    IF holder > 0 THEN
        IF pg_try_advisory_xact_lock(holder) THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'pgbaton: holder % is another session''s', holder USING ERRCODE = 'insufficient_privilege',
            HINT = 'A session acts for the holder that it became by pgbaton.enlist.';
    END IF;
    IF (holder < 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton: 0 and NULL are no holders' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Behind a pooler nothing is set on the session: nobody shall wait for a table for ever.
    IF current_setting('lock_timeout') = '0' THEN
        PERFORM set_config('lock_timeout', '500ms', true);
    END IF;
    SELECT h.service INTO owner FROM pgbaton.holder AS h WHERE h.id = require_holder.holder;
    IF NOT FOUND THEN
        INSERT INTO pgbaton.holder (id, name, since, service) VALUES (holder, '', clock_timestamp(), pgbaton.service())
            ON CONFLICT DO NOTHING;
        SELECT h.service INTO owner FROM pgbaton.holder AS h WHERE h.id = require_holder.holder; -- another may have been faster
    END IF;
    IF NOT pgbaton.serves(owner) THEN
        RAISE EXCEPTION 'pgbaton: holder % is of the service %', holder, owner USING ERRCODE = 'insufficient_privilege',
            HINT = 'Each client makes a holder of its own by pgbaton.enlist.';
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.drawn(token bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN token BETWEEN 1 AND (SELECT t.last_value + 31 FROM pgbaton.token AS t);
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.prune_leaders(older_than interval, most bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT l.name, l.service FROM pgbaton.leader AS l
         WHERE l.since < clock_timestamp() - older_than AND pgbaton.present(l.holder) IS NOT TRUE
         LIMIT most FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.leader AS l USING old WHERE l.name = old.name AND l.service = old.service;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.leader_of(name text, OUT holder_name text, OUT term bigint, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT l.holder_name, l.term, l.since FROM pgbaton.leader AS l
     WHERE l.name = leader_of.name AND pgbaton.acts_for(l.service) AND pgbaton.present(l.holder)
     ORDER BY l.service = pgbaton.service() DESC NULLS LAST, l.term DESC LIMIT 1;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.request_resign(name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked bigint;
BEGIN
    WITH asked_to AS (
        UPDATE pgbaton.leader AS l SET resign_requested = true
         WHERE l.name = request_resign.name AND pgbaton.acts_for(l.service) AND pgbaton.present(l.holder)
        RETURNING l.term)
    SELECT max(a.term) INTO asked FROM asked_to AS a;
    RETURN asked;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.prune_waits(most_waits bigint, most_looks bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    waits bigint;
    looks bigint;
BEGIN
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h
         WHERE h.holder < 0 OR NOT pgbaton.present(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.wait AS w
         WHERE w.holder IN (SELECT d.holder FROM dead AS d) LIMIT most_waits FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait AS w USING old WHERE w.id = old.id;
    GET DIAGNOSTICS waits = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT l.holder FROM pgbaton.wait_look AS l
         WHERE l.holder < 0 OR NOT pgbaton.present(l.holder) LIMIT most_looks FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait_look AS l USING old WHERE l.holder = old.holder;
    GET DIAGNOSTICS looks = ROW_COUNT;
    RETURN waits + looks;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.waits(looking bigint DEFAULT NULL, look bigint DEFAULT NULL) RETURNS TABLE (
    id bigint, holder bigint, looks bigint, seconds double precision, name text, key bigint, pair boolean, shared boolean,
    held_keys bigint[], held_pairs boolean[], held_shared boolean[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me       CONSTANT regrole := pgbaton.service();
    everyone CONSTANT boolean := waits.looking IS NULL AND pgbaton.operates();
BEGIN
    IF waits.looking IS NOT NULL THEN
        PERFORM pgbaton.require_session('pgbaton.waits', waits.looking);
        UPDATE pgbaton.wait_look AS l SET looks = waits.look, service = me WHERE l.holder = waits.looking;
        IF NOT FOUND THEN
            INSERT INTO pgbaton.wait_look (holder, looks, service) VALUES (waits.looking, waits.look, me);
        END IF;
    END IF;
    RETURN QUERY
    WITH own AS MATERIALIZED (
        SELECT w.* FROM pgbaton.wait AS w WHERE w.service IS NOT DISTINCT FROM me OR everyone),
    alive AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM own AS w) AS h WHERE h.holder > 0 AND pgbaton.present(h.holder))
    SELECT w.id, w.holder, coalesce(l.looks, 0), extract(epoch FROM clock_timestamp() - w.since)::double precision,
           w.name, w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM own AS w JOIN alive AS a ON a.holder = w.holder
    LEFT JOIN pgbaton.wait_look AS l ON l.holder = w.holder AND l.service IS NOT DISTINCT FROM w.service;
END;
$$;

DROP FUNCTION pgbaton.attends;
DROP FUNCTION pgbaton.change_engine;
DROP FUNCTION pgbaton.join_engine;
DROP FUNCTION pgbaton.engine_record;
DROP FUNCTION pgbaton.client_lives;
DROP FUNCTION pgbaton.tend_leases;
DROP FUNCTION pgbaton.leave_leases;
DROP FUNCTION pgbaton.free_leases;
DROP FUNCTION pgbaton.renew_leases;
DROP FUNCTION pgbaton.release_leases;
DROP FUNCTION pgbaton.release_lease;
DROP FUNCTION pgbaton.call_next;
DROP FUNCTION pgbaton.lock_leases;
DROP FUNCTION pgbaton.free_key;
DROP FUNCTION pgbaton.try_key;
DROP FUNCTION pgbaton.raise_tokens;
DROP FUNCTION pgbaton.lease_tokens;
DROP FUNCTION pgbaton.dead_holders;
DROP FUNCTION pgbaton.acquire_leases;
DROP FUNCTION pgbaton.acquire_lease;
DROP FUNCTION pgbaton.correct_lease;
DROP FUNCTION pgbaton.require_leases;

ALTER TABLE pgbaton.holder DROP COLUMN attends_until;
DROP TABLE pgbaton.lock_client;
DROP TABLE pgbaton.lease_floor;
DROP TABLE pgbaton.lock_engine;
DROP TABLE pgbaton.lease_share;
DROP TABLE pgbaton.lease;

CREATE OR REPLACE FUNCTION pgbaton.function_sets() RETURNS TABLE (name text, set text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name, s.set
      FROM (VALUES
        ('everybody', '{schema_version, key, gate, function_sets, session_role, service, acts_for, operates, bump_version,
            fence_guard}'::text[]),
        ('service', '{server_identity, tokens_trusted, repair_tokens, next_token, draw_token, begin_session, wait_for_turn,
            wait_for_turns, lock_for_transaction, fence, enlist, retire, tend, open_semaphore, claim_slots, free_slots,
            renew_slots, resize_semaphore, semaphore_state, semaphore_holders, holds_slots, compact_slots, keep_leaders,
            strike_leaders, leader_of, request_resign, begin_run, start_run, end_run, look_run, forget_run, publish_waits,
            withdraw_waits, waits}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 13, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
