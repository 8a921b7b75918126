-- Named one by one and without CASCADE, as in the full set.
--
-- Locks: ACCESS EXCLUSIVE on pgbaton.holder for a moment; it waits for transactions that have used it.

SET LOCAL search_path = pg_catalog, pg_temp; -- for the names in the bodies

DROP FUNCTION pgbaton.publish_locks(
    bigint, bigint, bigint[], text, text, integer, bigint, boolean, boolean, bigint[], bigint[], boolean[], text[], text[], bigint[], boolean[],
    boolean[], integer[], bigint[], bigint[]);

-- All that is held, as in the full set. There is nothing else in the database that could be listed.
CREATE OR REPLACE FUNCTION pgbaton.list_locks(p_database_waits boolean DEFAULT false) RETURNS TABLE (
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

ALTER TABLE pgbaton.holder DROP COLUMN host, DROP COLUMN process;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 2, 1;
END;
