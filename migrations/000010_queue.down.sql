-- Forgets how to wait for several keys.
DROP FUNCTION pgbaton.wait_for_turns(bigint[], bigint[], boolean[], integer, integer, integer);

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 9, 1;
END;
