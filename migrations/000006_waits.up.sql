-- The waits of those who hold other locks, so that processes find out that they wait for one another.
--
-- Locks: creates new objects and replaces a function; waits for nobody.

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

-- Publishes waits and returns their ids in the order given, which is ascending. What is held by the first of them are
-- the first held[1] elements of the last three arrays, and so on. Rows of holders that are gone are removed on the way.
CREATE FUNCTION pgbaton.publish_waits(
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

-- Withdraws waits of a holder, all if ids is NULL, and returns how many there were.
CREATE FUNCTION pgbaton.withdraw_waits(holder bigint, ids bigint[]) RETURNS integer
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

-- The waits of all holders that live. A holder says which look of its own it is, and so that its rows are right.
CREATE FUNCTION pgbaton.waits(looking bigint DEFAULT NULL, look bigint DEFAULT NULL) RETURNS TABLE (
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

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 6, 1;
END;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
