-- Named one by one and without CASCADE, as in the full set.

SET LOCAL search_path = pg_catalog, pg_temp; -- for the names in the bodies

DROP FUNCTION pgbaton.list_locks(boolean);

-- What a connection calls before it takes locks. It records the engine, which can only be one, if it is not recorded.
CREATE OR REPLACE FUNCTION pgbaton.join_engine(p_id bigint, p_wanted text, p_name text, p_length integer) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_id);
    SELECT pgbaton.refuse('PB002', 'the portable schema has the engine lease, and not ' || p_wanted) WHERE (p_wanted = 'lease') IS NOT TRUE;
    INSERT INTO pgbaton.lock_engine (engine, recorded_by, recorded_at)
    SELECT 'lease', left(p_name, 512), clock_timestamp() WHERE NOT EXISTS (SELECT 1 FROM pgbaton.lock_engine)
        ON CONFLICT DO NOTHING;
END;

-- Ends a holder of leases: what it holds is free.
CREATE OR REPLACE FUNCTION pgbaton.leave_leases(p_holder bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.free_leases(ARRAY[p_holder], '{}', '{}');
END;

-- Forgets holders that hold nothing and were not heard of for a week. Returns how many.
CREATE OR REPLACE FUNCTION pgbaton.forget_holders() RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    WITH old AS MATERIALIZED (
        SELECT h.id FROM pgbaton.holder AS h
         WHERE h.since < clock_timestamp() - interval '7 days' AND coalesce(h.attends_until < clock_timestamp(), true)
           AND NOT EXISTS (SELECT 1 FROM pgbaton.slot AS s WHERE s.holder = h.id)
         LIMIT 1000 FOR UPDATE SKIP LOCKED),
    gone AS (DELETE FROM pgbaton.holder AS h USING old AS o WHERE h.id = o.id RETURNING h.id)
    SELECT count(*)::integer FROM gone;
END;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 1, 1;
END;
