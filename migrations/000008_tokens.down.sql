-- Goes back to draws that the clock does not bound. What makes sure of the sequence (repair_tokens, tokens_trusted, more
-- than one row in pgbaton.incarnation) stays mended: it serves version 7 as well. Clients that draw by draw_token
-- stop working.
DROP FUNCTION pgbaton.begin_session();

CREATE OR REPLACE FUNCTION pgbaton.next_token() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT CASE WHEN pgbaton.repair_tokens() IS NOT NULL
                THEN pg_catalog.nextval('pgbaton.token'::pg_catalog.regclass) END;
END;

DROP FUNCTION pgbaton.draw_token();

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 7, 1;
END;
