-- Forgets whose the records are, and how runs have ended.
--
-- Locks: ALTER TABLE on last_run, for a moment.
DROP FUNCTION pgbaton.forget_run(text);
DROP FUNCTION pgbaton.look_run(text);
DROP FUNCTION pgbaton.end_run(text, bigint, boolean, text);
DROP FUNCTION pgbaton.start_run(text, interval, bigint, boolean, boolean);

-- As it was in version 5.
CREATE OR REPLACE FUNCTION pgbaton.begin_run(
    resource text, at_least interval, token bigint, OUT due boolean, OUT last_run timestamptz, OUT next_run timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    clock  timestamptz;
    newest bigint;
BEGIN
    IF (octet_length(resource) BETWEEN 1 AND 512 AND at_least > interval '0'
        AND coalesce(token, 1) BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.begin_run: a resource has 1 to 512 bytes, at_least is above zero and '
            'a token is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF token IS NULL THEN
        SELECT r.ran_at, r.token INTO last_run, newest FROM pgbaton.last_run AS r WHERE r.resource = begin_run.resource;
    ELSE
        SELECT r.ran_at, r.token INTO last_run, newest
          FROM pgbaton.last_run AS r WHERE r.resource = begin_run.resource FOR UPDATE;
    END IF;
    clock := clock_timestamp();
    next_run := last_run + at_least;
    due := last_run IS NULL OR (next_run <= clock AND coalesce(token, newest) >= newest);
    IF token IS NULL OR NOT due THEN
        RETURN;
    END IF;
    INSERT INTO pgbaton.last_run AS r VALUES (resource, token, clock)
        ON CONFLICT ON CONSTRAINT last_run_pkey DO UPDATE SET token = excluded.token, ran_at = excluded.ran_at
     WHERE r.token < excluded.token;
    due := FOUND; -- if not, somebody with a newer lock was faster
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
END;
$$;
DROP FUNCTION pgbaton.record_run(text, interval, bigint, boolean, boolean, boolean);
DROP FUNCTION pgbaton.run_tolerance(interval);
DROP FUNCTION pgbaton.drawn(bigint);
DROP FUNCTION pgbaton.refuse(text, text, regrole);
ALTER TABLE pgbaton.last_run
    DROP COLUMN service, DROP COLUMN at_least, DROP COLUMN ended_at, DROP COLUMN failed, DROP COLUMN error;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 10, 1;
END;
