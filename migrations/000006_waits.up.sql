-- The waits of those who hold other locks, so that processes find out that they wait for one another.
--
-- Locks: creates new objects and replaces a function; waits for nobody.

-- A wait of more than a second. UNLOGGED: after a crash nobody waits any more.
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

-- Publishes a wait and returns its id. Rows of holders that are gone are removed on the way.
CREATE FUNCTION pgbaton.publish_wait(
    holder bigint, name text, key bigint, pair boolean, shared boolean,
    held_keys bigint[], held_pairs boolean[], held_shared boolean[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    published bigint;
BEGIN
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h WHERE NOT pgbaton.present(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.wait AS w WHERE w.holder IN (SELECT d.holder FROM dead AS d) LIMIT 100 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait AS w USING old WHERE w.id = old.id;
    INSERT INTO pgbaton.wait AS w (holder, since, name, key, pair, shared, held_keys, held_pairs, held_shared)
    VALUES (publish_wait.holder, clock_timestamp(), publish_wait.name, publish_wait.key, publish_wait.pair,
            publish_wait.shared, publish_wait.held_keys, publish_wait.held_pairs, publish_wait.held_shared)
    RETURNING w.id INTO published;
    RETURN published;
END;
$$;

-- Withdraws waits of a holder, all if ids is NULL, and returns how many there were.
CREATE FUNCTION pgbaton.withdraw_waits(holder bigint, ids bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    withdrawn integer;
BEGIN
    DELETE FROM pgbaton.wait AS w
    WHERE w.holder = withdraw_waits.holder AND (withdraw_waits.ids IS NULL OR w.id = ANY (withdraw_waits.ids));
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
END;
$$;

-- The waits of all holders that live.
CREATE FUNCTION pgbaton.waits() RETURNS TABLE (
    id bigint, holder bigint, seconds double precision, name text, key bigint, pair boolean, shared boolean,
    held_keys bigint[], held_pairs boolean[], held_shared boolean[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    WITH alive AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h WHERE pgbaton.present(h.holder))
    SELECT w.id, w.holder, extract(epoch FROM clock_timestamp() - w.since)::double precision, w.name, w.key, w.pair,
           w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM pgbaton.wait AS w JOIN alive AS a ON a.holder = w.holder;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 6, 1;
END;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
