-- Forgets which roles are services and operators.
DROP FUNCTION pgbaton.service();
DROP FUNCTION pgbaton.operates();
DROP FUNCTION pgbaton.acts_for(regrole);
DROP FUNCTION pgbaton.session_role();
DROP TABLE pgbaton.grantee;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 6, 1;
END;
