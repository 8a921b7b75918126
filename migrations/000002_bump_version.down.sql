-- Without CASCADE: a trigger that still uses the function is named in the error.
DROP FUNCTION pgbaton.bump_version();

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 1, 1;
END;
