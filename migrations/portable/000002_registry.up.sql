-- The listing of what is held: leases and permits, with the names of the clients. Waiters are not published in the portable set.
--
-- Locks: replaces functions and creates another; waits for nobody.

SET LOCAL search_path = pg_catalog, pg_temp; -- for the names in the bodies

-- What a connection calls before it takes locks. It records the engine, which can only be one, if it is not recorded, and what the
-- client is called.
CREATE OR REPLACE FUNCTION pgbaton.join_engine(p_id bigint, p_wanted text, p_name text, p_length integer) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_id);
    SELECT pgbaton.refuse('PB002', 'the portable schema has the engine lease, and not ' || p_wanted) WHERE (p_wanted = 'lease') IS NOT TRUE;
    INSERT INTO pgbaton.lock_engine (engine, recorded_by, recorded_at)
    SELECT 'lease', left(p_name, 512), clock_timestamp() WHERE NOT EXISTS (SELECT 1 FROM pgbaton.lock_engine)
        ON CONFLICT DO NOTHING;
    INSERT INTO pgbaton.holder AS h (id, name, since) VALUES (p_id, left(p_name, 512), clock_timestamp())
        ON CONFLICT (id) DO NOTHING;
END;

CREATE OR REPLACE FUNCTION pgbaton.leave_leases(p_holder bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.free_leases(ARRAY[p_holder], '{}', '{}');
    DELETE FROM pgbaton.holder AS h WHERE h.id = p_holder;
END;

-- Forgets holders that were not heard of for a week and hold nothing. Returns how many.
CREATE OR REPLACE FUNCTION pgbaton.forget_holders() RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    WITH old AS MATERIALIZED (
        SELECT h.id FROM pgbaton.holder AS h
         WHERE h.since < clock_timestamp() - interval '7 days' AND coalesce(h.attends_until < clock_timestamp(), true)
           AND NOT EXISTS (SELECT 1 FROM pgbaton.slot AS s WHERE s.holder = h.id)
           AND NOT EXISTS (SELECT 1 FROM pgbaton.lease AS l WHERE l.holder = h.id)
         LIMIT 1000 FOR UPDATE SKIP LOCKED),
    gone AS (DELETE FROM pgbaton.holder AS h USING old AS o WHERE h.id = o.id RETURNING h.id)
    SELECT count(*)::integer FROM gone;
END;

-- All that is held, as in the full set. There is nothing else in the database that could be listed.
CREATE FUNCTION pgbaton.list_locks(p_database_waits boolean DEFAULT false) RETURNS TABLE (
    state text, kind text, name text, key bigint, pair boolean, shared boolean, permits integer, token bigint, since timestamptz,
    holder bigint, client text, host text, process integer, application text, pid integer, unlisted bigint,
    held_keys bigint[], held_pairs boolean[], blockers integer[])
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT 'held'::text, f.kind, f.name, f.key, f.pair, f.shared, f.permits, f.token, f.since, f.holder, h.name,
           NULL::text, NULL::integer, NULL::text, NULL::integer, 0::bigint, NULL::bigint[], NULL::boolean[], NULL::integer[]
      FROM (
        SELECT 'lock'::text AS kind, l.name, l.key, l.pair, false AS shared, 1 AS permits, l.token,
               to_timestamp(1577836800 + ((l.token >> 12)::double precision / 1000)) AS since, l.holder
          FROM pgbaton.lease AS l WHERE l.holder IS NOT NULL AND l.expires_at > clock_timestamp()
        UNION ALL
        SELECT 'lock', l.name, s.key, s.pair, true, 1, s.token, to_timestamp(1577836800 + ((s.token >> 12)::double precision / 1000)), s.holder
          FROM pgbaton.lease_share AS s LEFT JOIN pgbaton.lease AS l ON l.key = s.key AND l.pair = s.pair
         WHERE s.expires_at > clock_timestamp()
        UNION ALL
        SELECT 'permit', m.name, NULL, NULL, false, count(*)::integer, s.token, NULL, s.holder
          FROM pgbaton.slot AS s JOIN pgbaton.semaphore AS m ON m.id = s.semaphore
         WHERE s.holder IS NOT NULL AND s.expires_at > clock_timestamp()
         GROUP BY m.name, s.token, s.holder) AS f
      LEFT JOIN pgbaton.holder AS h ON h.id = f.holder;
END;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 2, 1;
END;
