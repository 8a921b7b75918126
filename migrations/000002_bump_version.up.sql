-- A trigger function for tables with a version column, so that writers who do not use pgbaton raise the
-- version too. For each such table:
--
--     CREATE TRIGGER bump_version BEFORE UPDATE ON accounts
--         FOR EACH ROW EXECUTE FUNCTION pgbaton.bump_version();
--
-- For a column that is not called version, give its name: pgbaton.bump_version('lock_version').
--
-- Locks: creates a function and replaces another; waits for nobody.

-- The new version is always the old one plus one, whatever the writer set: an UPDATE that raises
-- the version itself raises it once.
CREATE FUNCTION pgbaton.bump_version() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    next_version bigint;
BEGIN
    IF TG_OP <> 'UPDATE' OR TG_WHEN <> 'BEFORE' OR TG_LEVEL <> 'ROW' OR TG_NARGS > 1 THEN
        RAISE EXCEPTION 'trigger % on %.% must be BEFORE UPDATE, FOR EACH ROW, with at most one argument',
            TG_NAME, quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME)
            USING ERRCODE = 'trigger_protocol_violated';
    END IF;
    IF TG_NARGS = 0 THEN
        NEW.version := OLD.version + 1;
        RETURN NEW;
    END IF;
    EXECUTE format('SELECT ($1).%I::bigint + 1', TG_ARGV[0]) INTO next_version USING OLD;
    RETURN jsonb_populate_record(NEW, jsonb_build_object(TG_ARGV[0], next_version));
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 2, 1;
END;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
