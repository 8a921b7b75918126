-- Forgets whose the records are, and how runs have ended. The functions that look at it become again what they were
-- before; pgbaton.fence_guard, which does not, stays as it is.
--
-- Locks: ALTER TABLE on wait_look, wait, leader, fence and last_run, for a moment each.
DROP FUNCTION pgbaton.forget_run(text);
DROP FUNCTION pgbaton.look_run(text);
DROP FUNCTION pgbaton.end_run(text, bigint, boolean, text);
DROP FUNCTION pgbaton.start_run(text, interval, bigint, boolean, boolean);

ALTER TABLE pgbaton.wait_look DROP COLUMN service;
ALTER TABLE pgbaton.wait DROP COLUMN service, DROP COLUMN held;
DELETE FROM pgbaton.leader AS l USING pgbaton.leader AS newer
 WHERE newer.name OPERATOR(pg_catalog.=) l.name
   AND (newer.term OPERATOR(pg_catalog.>) l.term
        OR (newer.term OPERATOR(pg_catalog.=) l.term AND newer.service::pg_catalog.oid OPERATOR(pg_catalog.>) l.service::pg_catalog.oid));
ALTER TABLE pgbaton.leader DROP CONSTRAINT leader_pkey, DROP COLUMN service;
ALTER TABLE pgbaton.leader ADD CONSTRAINT leader_pkey PRIMARY KEY (name);
ALTER TABLE pgbaton.fence DROP COLUMN service;
ALTER TABLE pgbaton.last_run
    DROP COLUMN service, DROP COLUMN at_least, DROP COLUMN ended_at, DROP COLUMN failed, DROP COLUMN error;

CREATE OR REPLACE FUNCTION pgbaton.fence(resource text, token bigint, shared boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    salt    CONSTANT bigint := 6539763025470766922;
    name    CONSTANT text COLLATE "C" := resource;
    before  text;
    newest  bigint;
    seen_at timestamptz;
BEGIN
    IF (octet_length(name) BETWEEN 1 AND 512 AND token BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.fence: a resource has 1 to 512 bytes and a token is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF shared THEN
        IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            PERFORM pg_advisory_xact_lock_shared(hashtextextended(name, salt));
            BEGIN
                INSERT INTO pgbaton.fence AS f VALUES (name, 0, clock_timestamp()) ON CONFLICT DO NOTHING;
                IF FOUND THEN
                    RAISE EXCEPTION USING ERRCODE = 'PB000';
                END IF;
            EXCEPTION WHEN SQLSTATE 'PB000' THEN
                RETURN; -- there is no row, and now this one is gone, too
            END;
        END IF;
        SELECT f.token INTO newest FROM pgbaton.fence AS f WHERE f.resource = name FOR SHARE;
        IF NOT FOUND THEN
            PERFORM pg_advisory_xact_lock_shared(hashtextextended(name, salt));
            SELECT f.token INTO newest FROM pgbaton.fence AS f WHERE f.resource = name FOR SHARE;
        END IF;
    ELSE
        LOOP
            SELECT f.token, f.seen_at INTO newest, seen_at
              FROM pgbaton.fence AS f WHERE f.resource = name FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
            PERFORM pg_advisory_xact_lock(hashtextextended(name, salt));
            INSERT INTO pgbaton.fence AS f VALUES (name, fence.token, clock_timestamp()) ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
        END LOOP;
    END IF;
    IF newest > token THEN
        RAISE EXCEPTION 'token % of % is stale: % has been seen', token, quote_literal(name), newest
            USING ERRCODE = 'PB001',
                  DETAIL = jsonb_build_object('resource', name, 'token', token, 'newest', newest)::text;
    END IF;
    IF shared THEN
        RETURN;
    END IF;
    IF newest < token OR seen_at < clock_timestamp() - interval '1 minute' THEN
        UPDATE pgbaton.fence AS f SET token = fence.token, seen_at = clock_timestamp() WHERE f.resource = name;
    END IF;
    before := current_setting('pgbaton.token', true);
    IF before IS NULL OR before = '' THEN
        PERFORM set_config('pgbaton.token', token::text, true);
    ELSIF before <> token::text THEN
        PERFORM set_config('pgbaton.token', '0', true);
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.prune_fences(older_than interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    IF (older_than >= interval '1 hour') IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.prune_fences: older_than is %, less than an hour', coalesce(older_than::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A resource that is forgotten accepts the token of a holder that was paused as long.';
    END IF;
    WITH old AS MATERIALIZED (
        SELECT f.resource FROM pgbaton.fence AS f
        WHERE f.seen_at < clock_timestamp() - older_than FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.fence AS f USING old WHERE f.resource = old.resource;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.keep_leaders(names text[], terms bigint[], holder bigint, holder_name text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(names, terms) AS u (name, term)
               WHERE (octet_length(u.name) BETWEEN 1 AND 512 AND u.term BETWEEN 1 AND 9007199254740991) IS NOT TRUE) THEN
        RAISE EXCEPTION 'pgbaton.keep_leaders: a name has 1 to 512 bytes and a term is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO pgbaton.leader AS l (name, holder, holder_name, term, since)
    SELECT u.name, keep_leaders.holder, coalesce(keep_leaders.holder_name, ''), u.term, clock_timestamp()
      FROM unnest(names, terms) AS u (name, term)
      LEFT JOIN pgbaton.leader AS old ON old.name = u.name
     WHERE old.name IS NULL OR old.term < u.term OR (old.term = u.term AND old.holder <> keep_leaders.holder)
     ORDER BY u.name -- so that two who do it at the same time do not wait for one another
        ON CONFLICT ON CONSTRAINT leader_pkey DO UPDATE
       SET holder = excluded.holder, holder_name = excluded.holder_name, term = excluded.term,
           since = CASE WHEN l.term = excluded.term THEN l.since ELSE excluded.since END,
           resign_requested = l.term = excluded.term AND l.resign_requested
     WHERE l.term < excluded.term OR (l.term = excluded.term AND l.holder <> excluded.holder);
    RETURN QUERY
    SELECT l.name FROM unnest(names, terms) AS u (name, term)
      JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
     WHERE l.resign_requested;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.strike_leaders(names text[], terms bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WITH ended AS MATERIALIZED (
        SELECT l.name FROM unnest(names, terms) AS u (name, term)
          JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
         WHERE l.holder IS NOT NULL
         ORDER BY l.name FOR NO KEY UPDATE OF l)
    UPDATE pgbaton.leader AS l SET holder = NULL, resign_requested = false FROM ended WHERE l.name = ended.name;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.leader_of(name text, OUT holder_name text, OUT term bigint, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT l.holder_name, l.term, l.since FROM pgbaton.leader AS l
     WHERE l.name = leader_of.name AND pgbaton.present(l.holder);
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.request_resign(name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked bigint;
BEGIN
    UPDATE pgbaton.leader AS l SET resign_requested = true
     WHERE l.name = request_resign.name AND pgbaton.present(l.holder)
    RETURNING l.term INTO asked;
    RETURN asked;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.begin_run(
    resource text, at_least interval, token bigint, OUT due boolean, OUT last_run timestamptz, OUT next_run timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    clock  timestamptz;
    newest bigint;
BEGIN
    IF (octet_length(resource) BETWEEN 1 AND 512 AND at_least > interval '0'
        AND coalesce(token, 1) BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.begin_run: a resource has 1 to 512 bytes, at_least is above zero and '
            'a token is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF token IS NULL THEN
        SELECT r.ran_at, r.token INTO last_run, newest FROM pgbaton.last_run AS r WHERE r.resource = begin_run.resource;
    ELSE
        SELECT r.ran_at, r.token INTO last_run, newest
          FROM pgbaton.last_run AS r WHERE r.resource = begin_run.resource FOR UPDATE;
    END IF;
    clock := clock_timestamp();
    next_run := last_run + at_least;
    due := last_run IS NULL OR (next_run <= clock AND coalesce(token, newest) >= newest);
    IF token IS NULL OR NOT due THEN
        RETURN;
    END IF;
    INSERT INTO pgbaton.last_run AS r VALUES (resource, token, clock)
        ON CONFLICT ON CONSTRAINT last_run_pkey DO UPDATE SET token = excluded.token, ran_at = excluded.ran_at
     WHERE r.token < excluded.token;
    due := FOUND; -- if not, somebody with a newer lock was faster
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.publish_waits(
    holder bigint, names text[], keys bigint[], pairs boolean[], shared boolean[],
    held integer[], held_keys bigint[], held_pairs boolean[], held_shared boolean[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    published bigint[];
BEGIN
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h WHERE NOT pgbaton.present(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.wait AS w WHERE w.holder IN (SELECT d.holder FROM dead AS d) LIMIT 1000 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait AS w USING old WHERE w.id = old.id;
    WITH old AS MATERIALIZED (
        SELECT l.holder FROM pgbaton.wait_look AS l WHERE NOT pgbaton.present(l.holder) LIMIT 100 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait_look AS l USING old WHERE l.holder = old.holder;
    WITH given AS (
        SELECT u.place, u.name, u.key, u.pair, u.shared, u.held,
               (sum(u.held) OVER (ORDER BY u.place) - u.held)::integer AS before
        FROM unnest(publish_waits.names, publish_waits.keys, publish_waits.pairs, publish_waits.shared, publish_waits.held)
             WITH ORDINALITY AS u (name, key, pair, shared, held, place)),
    added AS (
        INSERT INTO pgbaton.wait AS w (holder, since, name, key, pair, shared, held_keys, held_pairs, held_shared)
        SELECT publish_waits.holder, clock_timestamp(), g.name, g.key, g.pair, g.shared,
               publish_waits.held_keys[g.before + 1 : g.before + g.held],
               publish_waits.held_pairs[g.before + 1 : g.before + g.held],
               publish_waits.held_shared[g.before + 1 : g.before + g.held]
        FROM given AS g ORDER BY g.place
        RETURNING w.id)
    SELECT array_agg(a.id ORDER BY a.id) INTO published FROM added AS a;
    RETURN coalesce(published, '{}');
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.withdraw_waits(holder bigint, ids bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    withdrawn integer;
BEGIN
    IF withdraw_waits.ids IS NULL THEN
        DELETE FROM pgbaton.wait AS w WHERE w.holder = withdraw_waits.holder;
    ELSE
        DELETE FROM pgbaton.wait AS w USING unnest(withdraw_waits.ids) AS i (id)
        WHERE w.id = i.id AND w.holder = withdraw_waits.holder;
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
BEGIN
    IF waits.looking IS NOT NULL THEN
        UPDATE pgbaton.wait_look AS l SET looks = waits.look WHERE l.holder = waits.looking;
        IF NOT FOUND THEN
            INSERT INTO pgbaton.wait_look (holder, looks) VALUES (waits.looking, waits.look);
        END IF;
    END IF;
    RETURN QUERY
    WITH alive AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h WHERE pgbaton.present(h.holder))
    SELECT w.id, w.holder, coalesce(l.looks, 0), extract(epoch FROM clock_timestamp() - w.since)::double precision,
           w.name, w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM pgbaton.wait AS w JOIN alive AS a ON a.holder = w.holder LEFT JOIN pgbaton.wait_look AS l ON l.holder = w.holder;
END;
$$;

DROP FUNCTION pgbaton.prune_waits(bigint, bigint);
DROP FUNCTION pgbaton.prune_leaders(interval, bigint);
DROP FUNCTION pgbaton.require_session(text, bigint);
DROP FUNCTION pgbaton.require_operator(text);
DROP FUNCTION pgbaton.record_run(text, interval, bigint, boolean, boolean, boolean);
DROP FUNCTION pgbaton.run_tolerance(interval);
DROP FUNCTION pgbaton.drawn(bigint);
DROP FUNCTION pgbaton.refuse(text, text, regrole);

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 10, 1;
END;
