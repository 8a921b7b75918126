-- Locks: ACCESS EXCLUSIVE on pgbaton.registry for a moment, which is dropped; what is published of locks is forgotten, but for watched waits.

LOCK TABLE pgbaton.registry IN ACCESS EXCLUSIVE MODE; -- first, as those have it who use the views

DROP VIEW pgbaton.locks;
DROP VIEW pgbaton.sessions;
DROP FUNCTION pgbaton.list_locks;
DROP FUNCTION pgbaton.publish_locks;
DROP FUNCTION pgbaton.prune_locks;

-- A wait of more than a second. UNLOGGED: after a crash nobody waits any longer.
CREATE UNLOGGED TABLE pgbaton.wait (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    holder      bigint      NOT NULL,
    since       timestamptz NOT NULL,
    name        text        NOT NULL,
    key         bigint      NOT NULL,
    pair        boolean     NOT NULL,
    shared      boolean     NOT NULL,
    held_keys   bigint[]    NOT NULL,
    held_pairs  boolean[]   NOT NULL,
    held_shared boolean[]   NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

COMMENT ON COLUMN pgbaton.wait.id IS 'the greater, the younger';
COMMENT ON COLUMN pgbaton.wait.holder IS 'whose wait it is; rows of a holder that is gone do not count';
COMMENT ON COLUMN pgbaton.wait.since IS 'when it was published';
COMMENT ON COLUMN pgbaton.wait.name IS 'of the key that is waited for, for people';
COMMENT ON COLUMN pgbaton.wait.held_keys IS 'what is held by whoever waits';

-- The number of each holder's last look, before which it has brought its rows up to date. Who has read a row learns by it
-- whether the row is still true later: a holder that no longer looks, frozen or cut off, cannot take back what it
-- has published.
CREATE UNLOGGED TABLE pgbaton.wait_look (
    holder bigint PRIMARY KEY,
    looks  bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

ALTER TABLE pgbaton.wait
    ADD COLUMN service regrole,
    ADD COLUMN held    integer NOT NULL DEFAULT 0;
ALTER TABLE pgbaton.wait_look ADD COLUMN service regrole;

COMMENT ON COLUMN pgbaton.wait.service IS 'whose it is; NULL is nobody''s';
COMMENT ON COLUMN pgbaton.wait.held IS 'how many locks are held by whoever waits';
COMMENT ON COLUMN pgbaton.wait_look.service IS 'whose it is; NULL is nobody''s';

CREATE FUNCTION pgbaton.move_waits() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO pgbaton.wait (id, holder, since, name, key, pair, shared, held_keys, held_pairs, held_shared, service, held)
    OVERRIDING SYSTEM VALUE
    SELECT w.id, w.holder, w.since, coalesce(w.name, ''), w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared, w.service, w.held
      FROM pgbaton.registry AS w WHERE w.kind = 'watched';
    PERFORM setval('pgbaton.wait_id_seq', (SELECT s.last_value FROM pgbaton.registry_id_seq AS s));
    INSERT INTO pgbaton.wait_look (holder, looks, service)
    SELECT l.holder, coalesce(max(l.looks), 0), max(l.service::oid)::regrole FROM pgbaton.registry AS l WHERE l.kind = 'look' GROUP BY l.holder;
END;
$$;

SELECT pgbaton.move_waits();
DROP FUNCTION pgbaton.move_waits();
DROP TABLE pgbaton.registry;

-- Publishes waits and returns their ids in the order given, which is ascending. What is held by the first of them are
-- the first held[1] elements of the last three arrays, and so on. Rows of holders that are gone are removed on the way.
-- A service has up to 20,000 waits, which hold up to a million locks: others read past them.
CREATE OR REPLACE FUNCTION pgbaton.publish_waits(
    holder bigint, names text[], keys bigint[], pairs boolean[], shared boolean[],
    held integer[], held_keys bigint[], held_pairs boolean[], held_shared boolean[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me        CONSTANT regrole := pgbaton.service();
    waits     CONSTANT bigint := cardinality(keys);
    locks     CONSTANT bigint := (SELECT coalesce(sum(h), 0) FROM unnest(held) AS h);
    published bigint[];
BEGIN
    IF (waits = cardinality(names) AND waits = cardinality(pairs) AND waits = cardinality(publish_waits.shared)
        AND waits = cardinality(publish_waits.held) AND locks = cardinality(publish_waits.held_keys)
        AND locks = cardinality(publish_waits.held_pairs) AND locks = cardinality(publish_waits.held_shared)
        AND NOT EXISTS (SELECT FROM unnest(publish_waits.held) AS h WHERE (h >= 0) IS NOT TRUE)) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.publish_waits: the arrays do not fit together' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgbaton.require_session('pgbaton.publish_waits', holder);
    PERFORM pgbaton.prune_waits(1000, 100);
    IF waits > 20000 - (SELECT count(*) FROM pgbaton.wait AS w WHERE w.service IS NOT DISTINCT FROM me)
       OR locks > 1000000 - (SELECT coalesce(sum(w.held), 0) FROM pgbaton.wait AS w WHERE w.service IS NOT DISTINCT FROM me) THEN
        RAISE EXCEPTION 'pgbaton.publish_waits: the service has more than 20,000 waits, or they hold more than a million locks'
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    WITH given AS (
        SELECT u.place, u.name, u.key, u.pair, u.shared, u.held,
               (sum(u.held) OVER (ORDER BY u.place) - u.held)::integer AS before
        FROM unnest(publish_waits.names, publish_waits.keys, publish_waits.pairs, publish_waits.shared, publish_waits.held)
             WITH ORDINALITY AS u (name, key, pair, shared, held, place)),
    added AS (
        INSERT INTO pgbaton.wait AS w (
            holder, since, name, key, pair, shared, held_keys, held_pairs, held_shared, service, held)
        SELECT publish_waits.holder, clock_timestamp(), left(g.name, 600), g.key, g.pair, g.shared,
               publish_waits.held_keys[g.before + 1 : g.before + g.held],
               publish_waits.held_pairs[g.before + 1 : g.before + g.held],
               publish_waits.held_shared[g.before + 1 : g.before + g.held],
               me, g.held
        FROM given AS g ORDER BY g.place
        RETURNING w.id)
    SELECT array_agg(a.id ORDER BY a.id) INTO published FROM added AS a;
    RETURN coalesce(published, '{}');
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
         WHERE NOT pgbaton.attends(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.wait AS w
         WHERE w.holder IN (SELECT d.holder FROM dead AS d) LIMIT most_waits FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait AS w USING old WHERE w.id = old.id;
    GET DIAGNOSTICS waits = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT l.holder FROM pgbaton.wait_look AS l
         WHERE NOT pgbaton.attends(l.holder) LIMIT most_looks FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait_look AS l USING old WHERE l.holder = old.holder;
    GET DIAGNOSTICS looks = ROW_COUNT;
    RETURN waits + looks;
END;
$$;

-- Withdraws waits of a holder of the session's service, all if ids is NULL, and returns how many there were. The holder may be
-- another session: that of a client before it lost it.
CREATE OR REPLACE FUNCTION pgbaton.withdraw_waits(holder bigint, ids bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    withdrawn integer;
BEGIN
    IF withdraw_waits.ids IS NULL THEN
        DELETE FROM pgbaton.wait AS w WHERE w.holder = withdraw_waits.holder AND pgbaton.acts_for(w.service);
    ELSE
        DELETE FROM pgbaton.wait AS w USING unnest(withdraw_waits.ids) AS i (id)
        WHERE w.id = i.id AND w.holder = withdraw_waits.holder AND pgbaton.acts_for(w.service);
    END IF;
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
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
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM own AS w) AS h WHERE pgbaton.attends(h.holder))
    SELECT w.id, w.holder, coalesce(l.looks, 0), extract(epoch FROM clock_timestamp() - w.since)::double precision,
           w.name, w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM own AS w JOIN alive AS a ON a.holder = w.holder
    LEFT JOIN pgbaton.wait_look AS l ON l.holder = w.holder AND l.service IS NOT DISTINCT FROM w.service;
END;
$$;

-- Gives what one service has made to another, so that its name goes to a group, for example: fences, jobs and semaphores. NULL
-- is everybody. Returns how many rows. Leaders and waits are published anew by those who lead and wait.
CREATE OR REPLACE FUNCTION pgbaton.reassign(old regrole, new regrole) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owned regclass;
    moved bigint;
    total bigint := 0;
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.reassign');
    FOR owned IN
        SELECT c.oid FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
         WHERE c.relnamespace = 'pgbaton'::regnamespace AND c.relkind = 'r' AND a.attname = 'service' AND NOT a.attisdropped
           AND c.relname NOT IN ('leader', 'wait', 'wait_look')
         ORDER BY c.relname
    LOOP
        EXECUTE format('UPDATE %s SET service = $1 WHERE service IS NOT DISTINCT FROM $2', owned) USING new, old;
        GET DIAGNOSTICS moved = ROW_COUNT;
        total := total + moved;
    END LOOP;
    RETURN total;
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
            withdraw_waits, waits, join_engine, acquire_lease, acquire_leases, release_lease, release_leases, renew_leases,
            leave_leases, tend_leases, lock_leases}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign, change_engine}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits, correct_lease, dead_holders, lease_tokens, raise_tokens,
            try_key, free_key, call_next, free_leases, require_leases, client_lives, attends}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 14, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
