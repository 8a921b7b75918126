-- EXECUTE is everybody's again, who has USAGE on the schema, and services may draw from the sequence.
CREATE FUNCTION pgbaton.loosen() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    role text;
BEGIN
    GRANT EXECUTE ON ALL ROUTINES IN SCHEMA pgbaton TO PUBLIC;
    FOR role IN SELECT CASE g.role::oid WHEN 0 THEN 'PUBLIC' ELSE g.role::text END FROM pgbaton.grantee AS g
                 WHERE g.role::oid = 0 OR EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = g.role::oid)
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE pgbaton.token TO %s', role);
    END LOOP;
END;
$$;

SELECT pgbaton.loosen();
DROP FUNCTION pgbaton.loosen();

DROP FUNCTION pgbaton.prune(interval);
DROP FUNCTION pgbaton.assign(text, text, regrole);
DROP FUNCTION pgbaton.reassign(regrole, regrole);
DROP FUNCTION pgbaton.revoke_grants(regrole);
DROP FUNCTION pgbaton.grant_operator(regrole);
DROP FUNCTION pgbaton.grant_service(regrole);
DROP FUNCTION pgbaton.record_grantee(regrole, boolean);
DROP FUNCTION pgbaton.apply_grants(boolean);
DROP FUNCTION pgbaton.function_sets();

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 12, 1;
END;
