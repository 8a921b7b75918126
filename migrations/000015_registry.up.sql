-- The registry: the published names of holders and waiters that last longer than a second. It replaces the board of the wait graph, so
-- that one table serves the listing of locks and the search for deadlocks.
--
-- What is held is known to the server, as advisory locks, leases and slots; the rows here give it names. A row counts as long as its session
-- lives, and one of a lock that is held as long as the server says that the session holds the lock. So rows of the dead, and rows that are late, are
-- not shown, and the next publication removes them.
--
-- Clients of before go on: publish_waits, withdraw_waits and waits are called as they were.
--
-- Locks: ACCESS EXCLUSIVE on pgbaton.wait and wait_look for a moment, which are dropped; it waits for statements that use them.

LOCK TABLE pgbaton.wait, pgbaton.wait_look IN ACCESS EXCLUSIVE MODE;

-- UNLOGGED: after a crash nobody waits any longer, and what is held is published anew.
CREATE UNLOGGED TABLE pgbaton.registry (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text        NOT NULL CHECK (kind IN ('held', 'waiting', 'watched', 'look', 'client')),
    holder      bigint      NOT NULL,
    publisher   bigint,
    service     regrole,
    since       timestamptz NOT NULL,
    what        text        NOT NULL DEFAULT 'lock' CHECK (what IN ('lock', 'set', 'once', 'permit')),
    name        text,
    key         bigint      NOT NULL DEFAULT 0,
    pair        boolean     NOT NULL DEFAULT false,
    shared      boolean     NOT NULL DEFAULT false,
    permits     integer     NOT NULL DEFAULT 1,
    token       bigint,
    held        integer     NOT NULL DEFAULT 0,
    held_keys   bigint[],
    held_pairs  boolean[],
    held_shared boolean[],
    looks       bigint,
    ids         bigint[],
    host        text,
    process     integer,
    unlisted    bigint
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE INDEX registry_kind ON pgbaton.registry (kind, holder);
CREATE INDEX registry_publisher ON pgbaton.registry (publisher) WHERE publisher IS NOT NULL;

COMMENT ON COLUMN pgbaton.registry.id IS 'the greater, the younger';
COMMENT ON COLUMN pgbaton.registry.kind IS 'held; waiting; watched: a wait of one who holds other locks, for the search for deadlocks; look: of a holder with watched waits; client';
COMMENT ON COLUMN pgbaton.registry.holder IS 'whose it is: an id of pgbaton.lock_client or pgbaton.holder; of a client its publisher';
COMMENT ON COLUMN pgbaton.registry.publisher IS 'a number of the client, the same as long as it lives';
COMMENT ON COLUMN pgbaton.registry.service IS 'whose it is; NULL is nobody''s';
COMMENT ON COLUMN pgbaton.registry.since IS 'since when it is held or waited for, to a second; of a watched wait: when it was published';
COMMENT ON COLUMN pgbaton.registry.name IS 'of the key, the semaphore or the client, for people; NULL if it has none, or keeps it to itself';
COMMENT ON COLUMN pgbaton.registry.held IS 'how many locks are held by whoever waits; they are in held_keys';
COMMENT ON COLUMN pgbaton.registry.looks IS 'of a look: the number of the holder''s last one, before which it has brought its watched waits up to date: whoever has read a row learns by it whether the row is still true later; of held and waiting: the publication';
COMMENT ON COLUMN pgbaton.registry.ids IS 'under which the client holds and waits';
COMMENT ON COLUMN pgbaton.registry.process IS 'of the client, on its host';
COMMENT ON COLUMN pgbaton.registry.unlisted IS 'how many more locks the client holds or waits for than it publishes';

-- Those who wait now have published it, and know the ids of their rows.
CREATE FUNCTION pgbaton.move_waits() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO pgbaton.registry (id, kind, holder, service, since, name, key, pair, shared, held, held_keys, held_pairs, held_shared)
    OVERRIDING SYSTEM VALUE
    SELECT w.id, 'watched', w.holder, w.service, w.since, w.name, w.key, w.pair, w.shared, w.held, w.held_keys, w.held_pairs, w.held_shared
      FROM pgbaton.wait AS w;
    PERFORM setval('pgbaton.registry_id_seq', (SELECT s.last_value FROM pgbaton.wait_id_seq AS s));
    INSERT INTO pgbaton.registry (kind, holder, service, since, looks)
    SELECT 'look', l.holder, l.service, clock_timestamp(), l.looks FROM pgbaton.wait_look AS l;
END;
$$;

SELECT pgbaton.move_waits();
DROP FUNCTION pgbaton.move_waits();
DROP TABLE pgbaton.wait_look;
DROP TABLE pgbaton.wait;

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
    IF waits > 20000 - (SELECT count(*) FROM pgbaton.registry AS w WHERE w.kind = 'watched' AND w.service IS NOT DISTINCT FROM me)
       OR locks > 1000000 - (SELECT coalesce(sum(w.held), 0) FROM pgbaton.registry AS w
                              WHERE w.kind = 'watched' AND w.service IS NOT DISTINCT FROM me) THEN
        RAISE EXCEPTION 'pgbaton.publish_waits: the service has more than 20,000 waits, or they hold more than a million locks'
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    WITH given AS (
        SELECT u.place, u.name, u.key, u.pair, u.shared, u.held,
               (sum(u.held) OVER (ORDER BY u.place) - u.held)::integer AS before
        FROM unnest(publish_waits.names, publish_waits.keys, publish_waits.pairs, publish_waits.shared, publish_waits.held)
             WITH ORDINALITY AS u (name, key, pair, shared, held, place)),
    added AS (
        INSERT INTO pgbaton.registry AS w (
            kind, holder, service, since, name, key, pair, shared, held, held_keys, held_pairs, held_shared)
        SELECT 'watched', publish_waits.holder, me, clock_timestamp(), left(g.name, 600), g.key, g.pair, g.shared, g.held,
               publish_waits.held_keys[g.before + 1 : g.before + g.held],
               publish_waits.held_pairs[g.before + 1 : g.before + g.held],
               publish_waits.held_shared[g.before + 1 : g.before + g.held]
        FROM given AS g ORDER BY g.place
        RETURNING w.id)
    SELECT array_agg(a.id ORDER BY a.id) INTO published FROM added AS a;
    RETURN coalesce(published, '{}');
END;
$$;

-- Removes up to so many waits, and looks, of holders that are gone; with NULL all, and what else the registry has of them.
CREATE OR REPLACE FUNCTION pgbaton.prune_waits(most_waits bigint, most_looks bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    waits bigint;
    looks bigint;
BEGIN
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.registry AS w WHERE w.kind = 'watched') AS h
         WHERE NOT pgbaton.attends(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.registry AS w
         WHERE w.kind = 'watched' AND w.holder IN (SELECT d.holder FROM dead AS d) LIMIT most_waits FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.registry AS w USING old WHERE w.id = old.id;
    GET DIAGNOSTICS waits = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT l.id FROM pgbaton.registry AS l
         WHERE l.kind = 'look' AND NOT pgbaton.attends(l.holder) LIMIT most_looks FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.registry AS l USING old WHERE l.id = old.id;
    GET DIAGNOSTICS looks = ROW_COUNT;
    RETURN waits + looks + CASE WHEN most_waits IS NULL THEN pgbaton.prune_locks(NULL) ELSE 0 END;
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
        DELETE FROM pgbaton.registry AS w WHERE w.kind = 'watched' AND w.holder = withdraw_waits.holder AND pgbaton.acts_for(w.service);
    ELSE
        DELETE FROM pgbaton.registry AS w USING unnest(withdraw_waits.ids) AS i (id)
        WHERE w.id = i.id AND w.kind = 'watched' AND w.holder = withdraw_waits.holder AND pgbaton.acts_for(w.service);
    END IF;
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
END;
$$;

-- The watched waits of all holders that live, of the session's service; an operator who does not look for a holder sees those of all.
-- A holder says which look of its own it is, and so that its rows are right.
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
        UPDATE pgbaton.registry AS l SET looks = waits.look, service = me WHERE l.kind = 'look' AND l.holder = waits.looking;
        IF NOT FOUND THEN
            INSERT INTO pgbaton.registry (kind, holder, service, since, looks) VALUES ('look', waits.looking, me, clock_timestamp(), waits.look);
        END IF;
    END IF;
    RETURN QUERY
    WITH own AS MATERIALIZED (
        SELECT w.* FROM pgbaton.registry AS w WHERE w.kind = 'watched' AND (w.service IS NOT DISTINCT FROM me OR everyone)),
    alive AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM own AS w) AS h WHERE pgbaton.attends(h.holder)),
    look AS MATERIALIZED (
        SELECT l.holder, l.service, max(l.looks) AS looks FROM pgbaton.registry AS l WHERE l.kind = 'look' GROUP BY l.holder, l.service)
    SELECT w.id, w.holder, coalesce(l.looks, 0), extract(epoch FROM clock_timestamp() - w.since)::double precision,
           w.name, w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM own AS w JOIN alive AS a ON a.holder = w.holder
    LEFT JOIN look AS l ON l.holder = w.holder AND l.service IS NOT DISTINCT FROM w.service;
END;
$$;

-- Brings what a client publishes up to date, and returns the ids of the new rows, in the order given. publisher is a number of the
-- client's own, unlike others; publication is greater each time, or the same if it is not known whether the statement has run; ids are those
-- under which the client holds and waits, and the session's own is one as well. gone are rows that are over; with anew all that the client has published before is, and with sweep
-- what the dead have left. Each new row has its place in the arrays from holders on: its id; whether it
-- waits; lock, set, once or permit; its name, '' for none; key and space of keys; shared or not; how many permits; its token; and for how many
-- milliseconds it has been so. A client has up to 4,000 rows, a service 100,000.
CREATE FUNCTION pgbaton.publish_locks(
    publisher bigint, publication bigint, ids bigint[], client text, host text, process integer, unlisted bigint, anew boolean, sweep boolean,
    gone bigint[], holders bigint[], waits boolean[], kinds text[], names text[], keys bigint[], pairs boolean[], shared boolean[],
    permits integer[], tokens bigint[], ages bigint[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me        CONSTANT regrole := pgbaton.service();
    rows      CONSTANT bigint := cardinality(holders);
    self      CONSTANT text := current_setting('pgbaton.holder', true);
    mine      bigint[] := publish_locks.ids;
    known     boolean;
    published bigint[];
BEGIN
    IF (cardinality(publish_locks.ids) <= 100 AND octet_length(client) <= 512 AND octet_length(host) <= 512
        AND publish_locks.publisher <> 0 AND publish_locks.publication > 0 AND publish_locks.anew IS NOT NULL AND publish_locks.sweep IS NOT NULL
        AND rows <= 4000 AND rows = ALL (ARRAY[cardinality(waits), cardinality(kinds), cardinality(names), cardinality(keys), cardinality(pairs),
            cardinality(publish_locks.shared), cardinality(publish_locks.permits), cardinality(tokens), cardinality(ages)])) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.publish_locks: the arrays do not fit together, or have more than 4,000 rows or 100 ids'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF current_setting('lock_timeout') = '0' THEN -- as in require_holder
        PERFORM set_config('lock_timeout', '500ms', true);
    END IF;
    IF anew THEN
        DELETE FROM pgbaton.registry AS r
         WHERE r.publisher = publish_locks.publisher AND r.kind IN ('held', 'waiting') AND pgbaton.acts_for(r.service);
    ELSE
        DELETE FROM pgbaton.registry AS r USING unnest(gone) AS g (id)
         WHERE r.id = g.id AND r.publisher = publish_locks.publisher AND r.kind IN ('held', 'waiting') AND pgbaton.acts_for(r.service);
        DELETE FROM pgbaton.registry AS r
         WHERE r.publisher = publish_locks.publisher AND r.looks = publication AND r.kind IN ('held', 'waiting') AND pgbaton.acts_for(r.service);
    END IF;
    -- Behind the rows of its own: a sweep passes by what others have locked, and would keep them waiting for what it has itself. Of a thousand clients about twenty do it each time.
    IF sweep AND random() * (SELECT count(*) FROM pgbaton.registry AS r WHERE r.kind = 'client') < 20 THEN
        PERFORM pgbaton.prune_locks(10000);
    END IF;
    IF cardinality(publish_locks.ids) = 0 THEN
        DELETE FROM pgbaton.registry AS r
         WHERE r.publisher = publish_locks.publisher AND r.kind = 'client' AND pgbaton.acts_for(r.service);
        RETURN '{}';
    END IF;
    -- All of a service's rows are counted when a client comes to it, and not each second.
    known := EXISTS (SELECT FROM pgbaton.registry AS r WHERE r.publisher = publish_locks.publisher AND r.kind = 'client');
    IF rows > 4000 - (SELECT count(*) FROM pgbaton.registry AS r WHERE r.publisher = publish_locks.publisher)
       OR NOT known AND rows > 100000 - (SELECT count(*) FROM pgbaton.registry AS r WHERE r.kind IN ('held', 'waiting', 'client') AND r.service IS NOT DISTINCT FROM me) THEN
        RAISE EXCEPTION 'pgbaton.publish_locks: the client has more than 4,000 rows, or the service more than 100,000'
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    IF self ~ '^[0-9]{1,19}$' THEN
        mine := mine || self::bigint; -- the session itself, which publishes watched waits
    END IF;
    UPDATE pgbaton.registry AS r
       SET ids = mine, name = publish_locks.client, host = publish_locks.host, process = publish_locks.process,
           unlisted = publish_locks.unlisted, service = me
     WHERE r.publisher = publish_locks.publisher AND r.kind = 'client' AND pgbaton.acts_for(r.service);
    IF NOT FOUND THEN
        INSERT INTO pgbaton.registry AS r (kind, holder, publisher, service, since, ids, name, host, process, unlisted)
        VALUES ('client', publish_locks.publisher, publish_locks.publisher, me, clock_timestamp(), mine, publish_locks.client,
                publish_locks.host, publish_locks.process, publish_locks.unlisted);
    END IF;
    -- Behind a pooler a holder says by this that it is there.
    UPDATE pgbaton.holder AS h SET attends_until = clock_timestamp() + interval '10 s'
     WHERE h.id = ANY (publish_locks.ids) AND h.id < 0 AND pgbaton.serves(h.service)
       AND coalesce(h.attends_until < clock_timestamp() + interval '8 s', true);
    WITH added AS (
        INSERT INTO pgbaton.registry AS r (kind, holder, publisher, looks, service, since, what, name, key, pair, shared, permits, token)
        SELECT CASE WHEN u.waits THEN 'waiting' ELSE 'held' END, u.holder, publish_locks.publisher, publication, me,
               clock_timestamp() - u.age * interval '1 ms', u.kind, nullif(left(u.name, 512), ''), u.key, u.pair, u.shared, u.permits, nullif(u.token, 0)
          FROM unnest(holders, waits, kinds, names, keys, pairs, publish_locks.shared, publish_locks.permits, tokens, ages) WITH ORDINALITY
                   AS u (holder, waits, kind, name, key, pair, shared, permits, token, age, place)
         ORDER BY u.place
        RETURNING r.id)
    SELECT array_agg(a.id ORDER BY a.id) INTO published FROM added AS a;
    RETURN coalesce(published, '{}');
END;
$$;

-- Removes up to so many rows of clients that are gone, all if most is NULL, and returns how many. In one look at the sessions that there are.
CREATE FUNCTION pgbaton.prune_locks(most bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    WITH alive AS MATERIALIZED (SELECT s.id FROM pgbaton.sessions AS s),
    here AS MATERIALIZED (
        SELECT r.id FROM pgbaton.registry AS r CROSS JOIN LATERAL unnest(r.ids) AS i (id) JOIN alive AS a ON a.id = i.id WHERE r.kind = 'client'),
    old AS MATERIALIZED (
        SELECT r.id FROM pgbaton.registry AS r
         WHERE (r.kind = 'client' AND r.id NOT IN (SELECT h.id FROM here AS h))
            OR (r.kind IN ('held', 'waiting') AND r.holder NOT IN (SELECT a.id FROM alive AS a))
         LIMIT most FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.registry AS r USING old WHERE r.id = old.id;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

-- The names in the bodies of views mean what they say, under whatever search_path this file is run.
CREATE FUNCTION pgbaton.make_views() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Whom the ids of pgbaton.lock_client and pgbaton.holder stand for, as far as they live. By a process id that was used again, one may seem to
    -- live that does not, to those who are not shown when a session began.
    --
    -- Any id can be joined with, and not any be enlisted: where the two are of different sessions, the holder is whose it is.
    CREATE VIEW pgbaton.sessions AS
    SELECT s.id, s.engine, s.name, s.service, s.pid, a.application_name, a.usesysid AS role
      FROM (SELECT h.id, c.engine, h.name, h.service::oid AS service, h.pid, greatest(h.since, c.joined_at) AS since,
                   greatest(h.attends_until, c.expires_at) AS until
              FROM pgbaton.holder AS h LEFT JOIN pgbaton.lock_client AS c ON c.id = h.id AND c.pid IS NOT DISTINCT FROM h.pid
             UNION ALL
            SELECT c.id, c.engine, c.name, NULL, c.pid, c.joined_at, c.expires_at
              FROM pgbaton.lock_client AS c WHERE NOT EXISTS (SELECT FROM pgbaton.holder AS h WHERE h.id = c.id)) AS s
      LEFT JOIN pg_stat_get_activity(NULL) AS a ON a.pid = s.pid
     WHERE CASE WHEN s.pid IS NULL THEN s.until > clock_timestamp()
                ELSE a.pid IS NOT NULL AND coalesce(a.backend_start <= s.since, true) END;

    -- All that is held and waited for in this database: locks, leases, permits, with names where they are published, and advisory locks of
    -- other programs. It is for a role that only looks, for example a monitoring system's: GRANT USAGE ON SCHEMA pgbaton and SELECT on
    -- this view to it. Services call pgbaton.list_locks.
    --
    -- Advisory locks with which the library says who lives and who is next are left out: ids of holders, and gates.
    CREATE VIEW pgbaton.locks AS
    WITH session AS MATERIALIZED (SELECT s.* FROM pgbaton.sessions AS s),
    advisory AS MATERIALIZED (
        SELECT l.pid, l.granted, l.mode = 'ShareLock' AS shared, l.objsubid = 2 AS pair,
               (l.classid::int8 << 32) | l.objid::int8 AS key, l.waitstart
          FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
         WHERE l.locktype = 'advisory' AND d.datname = current_database()),
    listed AS MATERIALIZED ( -- what others say of a session does not count
        SELECT r.* FROM pgbaton.registry AS r JOIN session AS s ON s.id = r.holder
         WHERE r.kind IN ('held', 'waiting', 'watched')
           AND CASE WHEN s.role IS NULL THEN s.service IS NULL OR r.service::oid = s.service
                    ELSE r.service IS NULL OR pg_has_role(s.role, r.service::oid, 'MEMBER') END),
    client AS MATERIALIZED (
        SELECT DISTINCT ON (u.id) u.id, r.name, r.host, r.process, r.unlisted
          FROM pgbaton.registry AS r CROSS JOIN LATERAL unnest(r.ids) AS u (id) JOIN session AS s ON s.id = u.id
         WHERE r.kind = 'client'
           AND CASE WHEN s.role IS NULL THEN s.service IS NULL OR r.service::oid = s.service
                    ELSE r.service IS NULL OR pg_has_role(s.role, r.service::oid, 'MEMBER') END
         ORDER BY u.id, r.since DESC),
    permit AS MATERIALIZED ( -- those of one claim have the tokens from that of its slots on, up to 32
        SELECT m.name, c.permits, c.token AS base, c.holder, s.pid, m.service::oid AS service, r.permits AS published, r.token, r.since
          FROM (SELECT t.semaphore, t.holder, abs(t.token) AS token, count(*)::int4 AS permits, max(t.expires_at) AS until
                  FROM pgbaton.slot AS t WHERE t.holder IS NOT NULL GROUP BY t.semaphore, t.holder, abs(t.token)) AS c
          JOIN pgbaton.semaphore AS m ON m.id = c.semaphore
          LEFT JOIN session AS s ON s.id = c.holder
          LEFT JOIN listed AS r ON r.kind = 'held' AND r.what = 'permit' AND r.holder = c.holder AND r.token BETWEEN c.token AND c.token + 31
         WHERE CASE WHEN c.holder > 0 THEN s.id IS NOT NULL ELSE c.until > clock_timestamp() END),
    own AS MATERIALIZED ( -- the library's own keys
        SELECT k.key # CASE WHEN k.pair THEN 8099550625553935922 ELSE 8099550625553935921 END AS key
          FROM (SELECT a.key, a.pair FROM advisory AS a JOIN session AS s ON s.pid = a.pid AND s.engine IS NOT NULL WHERE a.granted
                UNION SELECT r.key, r.pair FROM listed AS r WHERE r.what <> 'permit') AS k
        UNION SELECT m.gate FROM pgbaton.semaphore AS m
        UNION SELECT h.id FROM pgbaton.holder AS h WHERE h.id > 0),
    found AS (
        -- locks of sessions, of the library's and of others
        SELECT 'held' AS state, coalesce(r.what, 'lock') AS kind, r.name, a.key, a.pair, a.shared, 1 AS permits, r.token, r.since, s.id AS holder, a.pid,
               NULL::int8[] AS held_keys, NULL::bool[] AS held_pairs, r.service::oid AS service, CASE WHEN r.id IS NULL AND s.id IS NOT NULL THEN s.role END AS role
          FROM advisory AS a
          LEFT JOIN session AS s ON s.pid = a.pid AND s.engine = 'session'
          LEFT JOIN listed AS r ON r.kind = 'held' AND r.what <> 'permit' AND r.holder = s.id AND r.key = a.key AND r.pair = a.pair AND r.shared = a.shared
         WHERE a.granted AND (a.pair OR a.key NOT IN (SELECT o.key FROM own AS o))
           AND a.pid NOT IN (SELECT o.pid FROM session AS o WHERE o.engine <> 'session' AND o.pid IS NOT NULL)
        UNION ALL
        -- leases. The token of one that is no advisory lock as well is from the clock.
        SELECT 'held', coalesce(r.what, 'lock'), l.name, l.key, l.pair, l.shared, 1, l.token,
               CASE WHEN coalesce(s.engine, 'lease') = 'lease'
                    THEN least(to_timestamp(1577836800 + (l.token >> 12) / 1000.0::float8), clock_timestamp()) END,
               l.holder, s.pid, NULL, NULL, coalesce(s.service, h.service::oid), NULL
          FROM (SELECT e.key, e.pair, false AS shared, e.name, abs(e.token) AS token, e.holder, e.expires_at FROM pgbaton.lease AS e WHERE e.holder IS NOT NULL
                UNION ALL
                SELECT e.key, e.pair, true, n.name, abs(e.token), e.holder, e.expires_at
                  FROM pgbaton.lease_share AS e LEFT JOIN pgbaton.lease AS n ON n.key = e.key AND n.pair = e.pair) AS l
          LEFT JOIN session AS s ON s.id = l.holder
          LEFT JOIN pgbaton.holder AS h ON h.id = l.holder
          LEFT JOIN listed AS r ON r.kind = 'held' AND r.what <> 'permit' AND r.holder = l.holder AND r.key = l.key AND r.pair = l.pair AND r.shared = l.shared
         WHERE CASE WHEN l.holder > 0 THEN s.id IS NOT NULL ELSE l.expires_at > clock_timestamp() END
        UNION ALL
        -- permits: as they are published and, of a claim, what is not, of which nobody else knows the tokens
        SELECT 'held', 'permit', p.name, NULL, NULL, false, p.published, p.token, p.since, p.holder, p.pid, NULL, NULL, p.service, NULL
          FROM permit AS p WHERE p.published IS NOT NULL
        UNION ALL
        SELECT 'held', 'permit', p.name, NULL, NULL, false, p.permits - coalesce(sum(p.published), 0)::int4, NULL, NULL, p.holder, p.pid, NULL, NULL, p.service, NULL
          FROM permit AS p GROUP BY p.name, p.permits, p.base, p.holder, p.pid, p.service HAVING p.permits > coalesce(sum(p.published), 0)
        UNION ALL
        -- waiters
        SELECT 'waiting', r.what, r.name, CASE WHEN r.what <> 'permit' THEN r.key END, CASE WHEN r.what <> 'permit' THEN r.pair END, r.shared, r.permits,
               NULL, r.since, r.holder, s.pid, r.held_keys, r.held_pairs, r.service::oid, NULL
          FROM listed AS r JOIN session AS s ON s.id = r.holder
         WHERE r.kind <> 'held'
        UNION ALL
        -- waiters that nobody has published: of other programs, and the library's as long as they are young
        SELECT 'waiting', 'lock', NULL, a.key, a.pair, a.shared, 1, NULL, a.waitstart, NULL, a.pid, NULL, NULL, NULL, NULL
          FROM advisory AS a
         WHERE NOT a.granted AND (a.pair OR a.key NOT IN (SELECT o.key FROM own AS o))
           AND NOT (EXISTS (SELECT FROM listed AS r WHERE r.kind <> 'held' AND r.what <> 'permit' AND r.key = a.key AND r.pair = a.pair)
                    AND EXISTS (SELECT FROM advisory AS g WHERE g.pid = a.pid AND g.granted AND NOT g.pair
                                   AND g.key = a.key # CASE WHEN a.pair THEN 8099550625553935922 ELSE 8099550625553935921 END)))
    SELECT f.state, f.kind, f.name, f.key, f.pair, f.shared, f.permits, f.token, f.since, f.holder,
           coalesce(c.name, nullif(s.name, ''), nullif(h.name, '')) AS client, c.host, c.process, t.application_name AS application, f.pid,
           coalesce(c.unlisted, 0) AS unlisted, f.held_keys, f.held_pairs, f.service, f.role
      FROM found AS f
      LEFT JOIN session AS s ON s.id = f.holder
      LEFT JOIN pgbaton.holder AS h ON h.id = f.holder
      LEFT JOIN client AS c ON c.id = f.holder
      LEFT JOIN pg_stat_get_activity(NULL) AS t ON t.pid = f.pid;
END;
$$;

SELECT pgbaton.make_views();
DROP FUNCTION pgbaton.make_views();

-- All that is held and waited for, as pgbaton.locks has it. Of another service's permits nothing is shown, and of its locks no name and not
-- whose they are, unless to an operator. What the dead have left is removed on the way. With database_waits, also what waits in the database for rows, transactions and tables, and the
-- sessions that it waits for.
--
-- The planner takes pg_locks for a thousand rows, of which few are advisory locks, and knows as little of the registry, so that it would join
-- ten thousand locks with ten thousand rows by looking at each pair.
CREATE FUNCTION pgbaton.list_locks(database_waits boolean DEFAULT false) RETURNS TABLE (
    state text, kind text, name text, key bigint, pair boolean, shared boolean, permits integer, token bigint, since timestamptz,
    holder bigint, client text, host text, process integer, application text, pid integer, unlisted bigint,
    held_keys bigint[], held_pairs boolean[], blockers integer[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_nestloop = off
AS $$
DECLARE
    everyone CONSTANT boolean := pgbaton.operates();
    me       CONSTANT regrole := pgbaton.service();
BEGIN
    IF current_setting('transaction_read_only') = 'off' THEN
        PERFORM pgbaton.prune_waits(10000, 10000), pgbaton.prune_locks(10000);
    END IF;
    RETURN QUERY
    WITH found AS MATERIALIZED (SELECT l.* FROM pgbaton.locks AS l),
    visible AS MATERIALIZED (
        SELECT o.service, o.role,
               everyone OR CASE WHEN o.role = 0 THEN pgbaton.acts_for(o.service::regrole) -- else nobody has published yet whose it is
                                WHEN me IS NULL THEN o.role = pgbaton.session_role()
                                ELSE pg_has_role(o.role, me::oid, 'MEMBER') END AS yes
          FROM (SELECT DISTINCT coalesce(f.service, 0) AS service, coalesce(f.role, 0) AS role FROM found AS f) AS o)
    SELECT f.state, f.kind, CASE WHEN v.yes THEN f.name END, f.key, f.pair, f.shared, f.permits, f.token, f.since,
           CASE WHEN v.yes THEN f.holder END, CASE WHEN v.yes THEN f.client END, CASE WHEN v.yes THEN f.host END, CASE WHEN v.yes THEN f.process END, f.application, f.pid,
           CASE WHEN v.yes THEN f.unlisted ELSE 0 END, CASE WHEN v.yes THEN f.held_keys END, CASE WHEN v.yes THEN f.held_pairs END, NULL::integer[]
      FROM found AS f JOIN visible AS v ON v.service = coalesce(f.service, 0) AND v.role = coalesce(f.role, 0)
     WHERE v.yes OR f.kind <> 'permit';
    IF NOT database_waits THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH waits AS MATERIALIZED (
        SELECT l.pid, min(l.waitstart) AS since, pg_blocking_pids(l.pid) AS blockers,
               string_agg(l.locktype || coalesce(' ' || l.transactionid::text, '') || coalesce(' of ' || c.relname, ''), ', ') AS name
          FROM pg_locks AS l
          LEFT JOIN pg_stat_get_activity(NULL) AS a ON a.pid = l.pid
          LEFT JOIN pg_class AS c ON c.oid = l.relation
         WHERE NOT l.granted AND l.locktype <> 'advisory'
           AND coalesce(nullif(l.database, 0), a.datid) = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
         GROUP BY l.pid),
    named AS (
        SELECT 'waiting' AS state, w.name, w.pid, w.since, w.blockers FROM waits AS w
         UNION ALL
        SELECT DISTINCT 'held', 'transaction', b.pid, NULL::timestamptz, NULL::integer[] FROM waits AS w, unnest(w.blockers) AS b (pid)
         WHERE b.pid NOT IN (SELECT o.pid FROM waits AS o))
    SELECT n.state, 'database', n.name, NULL::bigint, NULL::boolean, false, 1, NULL::bigint, n.since, NULL::bigint, NULL::text, NULL::text,
           NULL::integer, a.application_name, n.pid, 0::bigint, NULL::bigint[], NULL::boolean[], n.blockers
      FROM named AS n LEFT JOIN pg_stat_get_activity(NULL) AS a ON a.pid = n.pid;
END;
$$;

-- Gives what one service has made to another, so that its name goes to a group, for example: fences, jobs and semaphores. NULL
-- is everybody. Returns how many rows. Leaders, locks and waits are published anew by those who lead, hold and wait.
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
           AND c.relname NOT IN ('leader', 'registry')
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
            withdraw_waits, waits, publish_locks, list_locks, join_engine, acquire_lease, acquire_leases, release_lease, release_leases, renew_leases,
            leave_leases, tend_leases, lock_leases}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign, change_engine}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits, prune_locks, correct_lease, dead_holders, lease_tokens, raise_tokens,
            try_key, free_key, call_next, free_leases, require_leases, client_lives, attends}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 15, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
