-- Locks: drops objects that only running clients use; those then find deadlocks within their process only.

DROP FUNCTION pgbaton.waits(bigint, bigint);
DROP FUNCTION pgbaton.withdraw_waits(bigint, bigint[]);
DROP FUNCTION pgbaton.publish_waits(bigint, text[], bigint[], boolean[], boolean[], integer[], bigint[], boolean[], boolean[]);
DROP TABLE pgbaton.wait_look;
DROP TABLE pgbaton.wait;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 5, 1;
END;
