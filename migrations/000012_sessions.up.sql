-- Which server a session is on, so that the sessions of a client can make sure that they are all on the same one.
--
-- Locks: creates a function and replaces another; waits for nobody.

-- The run of the server (its system identifier, its timeline, its start) and the database. Two sessions for which it is
-- the same see each other's locks. What the owner of this schema may not ask, or what a host does not know, is left out:
-- the start of the server and the database nearly always tell two of them apart.
CREATE FUNCTION pgbaton.server_identity() RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    system   text;
    timeline text;
BEGIN
    BEGIN
        SELECT c.system_identifier::text INTO system FROM pg_control_system() AS c;
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    BEGIN -- not pg_control_checkpoint(), which tells a new timeline some minutes late
        timeline := left(pg_walfile_name(pg_current_wal_lsn()), 8);
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN concat_ws('/', system, timeline, extract(epoch FROM pg_postmaster_start_time())::text,
                     (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())::text);
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 12, 1;
END;
