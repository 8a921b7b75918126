-- Clients of this version cannot open sessions any longer.
DROP FUNCTION pgbaton.server_identity();

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 11, 1;
END;
