-- Forgets every token that a fence has seen: a holder that was paused since before can write again.
-- Without CASCADE: a trigger that still uses the function is named in the error.
DROP FUNCTION pgbaton.fence_guard();
DROP FUNCTION pgbaton.prune_fences(interval);
DROP FUNCTION pgbaton.fence(text, bigint, boolean);
DROP TABLE pgbaton.fence;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 2, 1;
END;
