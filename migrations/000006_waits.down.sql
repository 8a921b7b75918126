-- Locks: drops objects that only running clients use; those then find deadlocks within their process only.

DROP FUNCTION pgbaton.waits();
DROP FUNCTION pgbaton.withdraw_waits(bigint, bigint[]);
DROP FUNCTION pgbaton.publish_wait(bigint, text, bigint, boolean, boolean, bigint[], boolean[], boolean[]);
DROP TABLE pgbaton.wait;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 5, 1;
END;
