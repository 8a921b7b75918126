-- Fencing: a resource remembers the newest exclusive token that it was shown, and refuses older ones. See
-- docs/fencing.md.
--
-- Locks: creates a table and functions and replaces another; waits for nobody.

-- One row for each resource that was ever fenced. A row is updated in place (HOT): no index but the key, and
-- room on each page. The names pgbaton:key:N and pgbaton:pair:A,B are those of advisory lock keys.
CREATE TABLE pgbaton.fence (
    resource text COLLATE pg_catalog."C" PRIMARY KEY,
    token    bigint      NOT NULL,
    seen_at  timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON COLUMN pgbaton.fence.token IS 'the newest exclusive token that was shown';
COMMENT ON COLUMN pgbaton.fence.seen_at IS 'when it was last shown, to a minute';

-- Shows a token for a resource. If a newer one has been seen, it raises PB001, with
-- {"resource": ..., "token": ..., "newest": ...} as DETAIL. If not, newer ones wait in here until the transaction ends:
-- what it writes is committed before anything that a newer holder writes.
--
-- The token of a shared lock is compared and not recorded, and shared ones do not wait for one another.
--
-- An exclusive token becomes the transaction's setting pgbaton.token, for fence_guard; with a second, different
-- one the setting is 0, because it could mean either.
--
-- Where there is no row to lock, an advisory lock of the transaction takes its place. Above READ COMMITTED a
-- row that was written after the snapshot is a serialization_failure; a shared token, which writes
-- nothing, finds one that it cannot see by an INSERT that is taken back. (Before it reads, because the
-- INSERTs of two serializable transactions that have read would be a conflict of theirs.)
CREATE FUNCTION pgbaton.fence(resource text, token bigint, shared boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    salt    CONSTANT bigint := 6539763025470766922;
    name    CONSTANT text COLLATE "C" := resource;
    before  text;
    newest  bigint;
    seen_at timestamptz;
BEGIN
    IF (octet_length(name) BETWEEN 1 AND 512 AND token BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.fence: a resource has 1 to 512 bytes and a token is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF shared THEN
        IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
            PERFORM pg_advisory_xact_lock_shared(hashtextextended(name, salt));
            BEGIN
                INSERT INTO pgbaton.fence AS f VALUES (name, 0, clock_timestamp()) ON CONFLICT DO NOTHING;
                IF FOUND THEN
                    RAISE EXCEPTION USING ERRCODE = 'PB000';
                END IF;
            EXCEPTION WHEN SQLSTATE 'PB000' THEN
                RETURN; -- there is no row, and now this one is gone, too
            END;
        END IF;
        SELECT f.token INTO newest FROM pgbaton.fence AS f WHERE f.resource = name FOR SHARE;
        IF NOT FOUND THEN
            PERFORM pg_advisory_xact_lock_shared(hashtextextended(name, salt));
            SELECT f.token INTO newest FROM pgbaton.fence AS f WHERE f.resource = name FOR SHARE;
        END IF;
    ELSE
        LOOP
            SELECT f.token, f.seen_at INTO newest, seen_at
              FROM pgbaton.fence AS f WHERE f.resource = name FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
            PERFORM pg_advisory_xact_lock(hashtextextended(name, salt));
            INSERT INTO pgbaton.fence AS f VALUES (name, fence.token, clock_timestamp()) ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
        END LOOP;
    END IF;
    IF newest > token THEN
        RAISE EXCEPTION 'token % of % is stale: % has been seen', token, quote_literal(name), newest
            USING ERRCODE = 'PB001',
                  DETAIL = jsonb_build_object('resource', name, 'token', token, 'newest', newest)::text;
    END IF;
    IF shared THEN
        RETURN;
    END IF;
    IF newest < token OR seen_at < clock_timestamp() - interval '1 minute' THEN
        UPDATE pgbaton.fence AS f SET token = fence.token, seen_at = clock_timestamp() WHERE f.resource = name;
    END IF;
    before := current_setting('pgbaton.token', true);
    IF before IS NULL OR before = '' THEN
        PERFORM set_config('pgbaton.token', token::text, true);
    ELSIF before <> token::text THEN
        PERFORM set_config('pgbaton.token', '0', true);
    END IF;
END;
$$;

-- Forgets the resources that no exclusive token was shown for in so long, and returns how many. A resource
-- that is forgotten accepts any token: choose a time that no paused holder outlives.
CREATE FUNCTION pgbaton.prune_fences(older_than interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    IF (older_than >= interval '1 hour') IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.prune_fences: older_than is %, less than an hour', coalesce(older_than::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A resource that is forgotten accepts the token of a holder that was paused as long.';
    END IF;
    WITH old AS MATERIALIZED (
        SELECT f.resource FROM pgbaton.fence AS f
        WHERE f.seen_at < clock_timestamp() - older_than FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.fence AS f USING old WHERE f.resource = old.resource;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

-- A trigger function for tables whose rows have a column with the token of their last writer, so that no
-- writer with an older one gets in, whatever it is written in. For each such table:
--
--     CREATE TRIGGER fence_guard BEFORE INSERT OR UPDATE OR DELETE ON ledger
--         FOR EACH ROW EXECUTE FUNCTION pgbaton.fence_guard();
--
-- For a column that is not called fence, give its name: pgbaton.fence_guard('last_token').
--
-- A writer shows its token by writing the column, or as the transaction's setting pgbaton.token, which
-- pgbaton.fence sets, or: SET LOCAL pgbaton.token = 4711. A row that is written without a change of the
-- column gets the setting's token. Who deletes a row has no column to write: only the setting counts. NULL and 0
-- are no token. PB001 is raised when the column would go back, or a row with a token is deleted
-- with an older one or none. An UPDATE that shows no token passes: it is for people who mend data.
CREATE FUNCTION pgbaton.fence_guard() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    shown  CONSTANT bigint := coalesce(nullif(current_setting('pgbaton.token', true), ''), '0');
    fenced CONSTANT text := coalesce(TG_ARGV[0], 'fence');
    old_token bigint;
    new_token bigint;
    stamp     boolean := false;
BEGIN
    IF TG_WHEN <> 'BEFORE' OR TG_LEVEL <> 'ROW' OR TG_NARGS > 1 THEN
        RAISE EXCEPTION 'trigger % on %.% must be BEFORE, FOR EACH ROW, with at most one argument',
            TG_NAME, quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME)
            USING ERRCODE = 'trigger_protocol_violated';
    END IF;
    CASE
        WHEN fenced = 'fence' THEN
            IF TG_OP <> 'INSERT' THEN
                old_token := OLD.fence;
            END IF;
            IF TG_OP <> 'DELETE' THEN
                new_token := NEW.fence;
            END IF;
        WHEN TG_OP = 'INSERT' THEN
            EXECUTE format('SELECT ($1).%I', fenced) INTO new_token USING NEW;
        WHEN TG_OP = 'DELETE' THEN
            EXECUTE format('SELECT ($1).%I', fenced) INTO old_token USING OLD;
        ELSE
            EXECUTE format('SELECT ($1).%1$I, ($2).%1$I', fenced) INTO old_token, new_token USING OLD, NEW;
    END CASE;
    old_token := coalesce(old_token, 0);
    new_token := coalesce(new_token, 0);
    IF TG_OP = 'DELETE' OR (shown > 0 AND new_token = old_token) THEN
        stamp := shown <> new_token;
        new_token := shown;
    END IF;
    IF new_token < old_token THEN
        RAISE EXCEPTION 'token % of a row of %.% is stale: % has been seen',
            new_token, quote_ident(TG_TABLE_SCHEMA), quote_ident(TG_TABLE_NAME), old_token
            USING ERRCODE = 'PB001', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME, COLUMN = fenced,
                  DETAIL = jsonb_build_object('resource', format('%I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME),
                                              'token', new_token, 'newest', old_token)::text,
                  HINT = 'A writer shows its token in the column, or by SET LOCAL pgbaton.token.';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    ELSIF stamp AND fenced = 'fence' THEN
        NEW.fence := new_token;
    ELSIF stamp THEN
        RETURN jsonb_populate_record(NEW, jsonb_build_object(fenced, new_token));
    END IF;
    RETURN NEW;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 3, 1;
END;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
