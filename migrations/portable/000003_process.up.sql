-- Where a client runs, for the listing: its host and its process there. It says so when it has held something for a second, and not when it takes a
-- lock. Clients of before are listed by their names alone.
--
-- Locks: ACCESS EXCLUSIVE on pgbaton.holder for a moment; it waits for transactions that have used it.

SET LOCAL search_path = pg_catalog, pg_temp; -- for the names in the bodies

ALTER TABLE pgbaton.holder ADD COLUMN host text, ADD COLUMN process integer;

-- Says where the holders run that a client is, as in the full set. There is no table of names here: what is held has rows of its own, and waiters are
-- not published. So no other row is taken, and none is returned. The rows of holders go as they did: with the client, or a week later.
CREATE FUNCTION pgbaton.publish_locks(
    p_publisher bigint, p_publication bigint, p_ids bigint[], p_client text, p_host text, p_process integer, p_unlisted bigint, p_anew boolean,
    p_sweep boolean, p_gone bigint[], p_holders bigint[], p_waits boolean[], p_kinds text[], p_names text[], p_keys bigint[], p_pairs boolean[],
    p_shared boolean[], p_permits integer[], p_tokens bigint[], p_ages bigint[])
RETURNS bigint[]
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.pin();
    SELECT pgbaton.refuse('22023', 'a client is up to 100 holders, whose ids are below zero; its name and its host have up to 512 bytes; it publishes no locks')
     WHERE (cardinality(p_ids) <= 100 AND 0 > ALL (p_ids) AND octet_length(p_client) <= 512 AND octet_length(p_host) <= 512
            AND cardinality(p_holders) = 0) IS NOT TRUE;
    INSERT INTO pgbaton.holder AS h (id, name, since, host, process)
    SELECT i.id, p_client, clock_timestamp(), p_host, p_process FROM (SELECT DISTINCT u.id FROM unnest(p_ids) AS u (id)) AS i ORDER BY i.id
        ON CONFLICT (id) DO UPDATE SET host = excluded.host, process = excluded.process;
    SELECT '{}'::bigint[];
END;

-- All that is held, as in the full set. There is nothing else in the database that could be listed.
CREATE OR REPLACE FUNCTION pgbaton.list_locks(p_database_waits boolean DEFAULT false) RETURNS TABLE (
    state text, kind text, name text, key bigint, pair boolean, shared boolean, permits integer, token bigint, since timestamptz,
    holder bigint, client text, host text, process integer, application text, pid integer, unlisted bigint,
    held_keys bigint[], held_pairs boolean[], blockers integer[])
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT 'held'::text, f.kind, f.name, f.key, f.pair, f.shared, f.permits, f.token, f.since, f.holder, h.name,
           h.host, h.process, NULL::text, NULL::integer, 0::bigint, NULL::bigint[], NULL::boolean[], NULL::integer[]
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
    SELECT 3, 1;
END;
