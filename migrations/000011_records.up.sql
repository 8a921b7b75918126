-- Whose the records are: what a service has made, its fences, jobs, leaders and waits, belongs to it, and others keep
-- their hands off it. Rows from before belong to nobody, and so to everybody; pgbaton.assign gives them to somebody.
--
-- Locks: ALTER TABLE on fence, leader, last_run, wait and wait_look, for a moment each, none of which rewrites a table;
-- it waits for transactions that have fenced. Functions keep their signatures, so clients go on.

-- Raises that something is another service's, with what to do about it.
CREATE FUNCTION pgbaton.refuse(what text, name text, service regrole) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION '% % belongs to the service %, and the role % does not speak for it',
        what, quote_literal(left(name, 512)), service, pgbaton.session_role()::regrole
        USING ERRCODE = 'insufficient_privilege',
              HINT = format('GRANT %s TO %s makes it a member of that service; an operator moves what is there with '
                            'SELECT pgbaton.assign(%L, %L, %L); else choose another name, with the service''s as its prefix.',
                            service, pgbaton.session_role()::regrole, what, left(name, 512), pgbaton.session_role()::regrole);
END;
$$;

-- Whether a token of this database's sequence can have been drawn. A draw is worth 32.
CREATE FUNCTION pgbaton.drawn(token bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN token BETWEEN 1 AND (SELECT t.last_value + 31 FROM pgbaton.token AS t);
END;
$$;

--
-- Jobs
--

ALTER TABLE pgbaton.last_run
    ADD COLUMN service  regrole,
    ADD COLUMN at_least interval,
    ADD COLUMN ended_at timestamptz,
    ADD COLUMN failed   boolean,
    ADD COLUMN error    text;

COMMENT ON COLUMN pgbaton.last_run.service IS 'whose it is; NULL is everybody''s';
COMMENT ON COLUMN pgbaton.last_run.at_least IS 'the window with which it was begun';
COMMENT ON COLUMN pgbaton.last_run.ended_at IS 'NULL if it goes on, or nobody has said that it has ended';
COMMENT ON COLUMN pgbaton.last_run.failed IS 'true, too, until it is said to have ended; NULL: begun by a client that does not say';
COMMENT ON COLUMN pgbaton.last_run.error IS 'why it failed, for people; up to 1,000 characters';

-- How far ahead of the clock a run may have begun that is believed. Servers' clocks differ, which a failover shows, and are
-- set back. Who believes such a run waits for as long beyond the window; who does not may run twice within it.
-- So it is a minute, or a tenth of the window if that is more. From there on the clock was wrong when the run
-- began, and nobody can tell when that was.
CREATE FUNCTION pgbaton.run_tolerance(at_least interval) RETURNS interval
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest('1 minute'::pg_catalog.interval, at_least OPERATOR(pg_catalog./) 10::pg_catalog.float8);

-- Says whether a job may run: whether its last run, if there was one, began at_least ago. With a token, which the
-- caller's lock on the job has, a run that may begin is recorded, and the commit of that is flushed to this server's
-- disk whatever synchronous_commit says; a token that is older than the last run's records nothing. Without a
-- token it only looks. last_run and next_run are NULL if there never was a run.
--
-- retry_failed: a last run that has failed is none. A run that was begun by this function and is not said to have ended
-- has failed, for with the lock in the caller's hand it does not go on. force: the window does not matter.
--
-- disbelieved: the last run claims to have begun in the future, beyond pgbaton.run_tolerance, and is taken for none; next_run
-- is NULL.
CREATE FUNCTION pgbaton.start_run(
    resource text, at_least interval, token bigint, retry_failed boolean, force boolean,
    OUT due boolean, OUT last_run timestamptz, OUT next_run timestamptz, OUT disbelieved boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT b.due, b.last_run, b.next_run, b.disbelieved INTO due, last_run, next_run, disbelieved
      FROM pgbaton.record_run(resource, at_least, token, retry_failed IS TRUE, force IS TRUE, true) AS b;
END;
$$;

-- pgbaton.start_run for clients that do not say how a run has ended.
CREATE OR REPLACE FUNCTION pgbaton.begin_run(
    resource text, at_least interval, token bigint, OUT due boolean, OUT last_run timestamptz, OUT next_run timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT b.due, b.last_run, b.next_run INTO due, last_run, next_run
      FROM pgbaton.record_run(resource, at_least, token, false, false, NULL) AS b;
END;
$$;

-- What both do. unended is what failed says until the run is said to have ended.
CREATE FUNCTION pgbaton.record_run(
    resource text, at_least interval, token bigint, retry_failed boolean, force boolean, unended boolean,
    OUT due boolean, OUT last_run timestamptz, OUT next_run timestamptz, OUT disbelieved boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    clock timestamptz;
    r     pgbaton.last_run;
BEGIN
    IF (octet_length(resource) BETWEEN 1 AND 512 AND at_least > interval '0' AND at_least <= interval '1000 years'
        AND coalesce(token, 1) BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.start_run: a resource has 1 to 512 bytes, at_least is above zero and at most 1000 years, and '
            'a token is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF token IS NULL THEN
        SELECT l.* INTO r FROM pgbaton.last_run AS l WHERE l.resource = record_run.resource;
    ELSIF NOT pgbaton.drawn(token) THEN
        RAISE EXCEPTION 'pgbaton.start_run: token % was never drawn in this database', token
            USING ERRCODE = 'invalid_parameter_value';
    ELSE
        SELECT l.* INTO r FROM pgbaton.last_run AS l WHERE l.resource = record_run.resource FOR UPDATE;
    END IF;
    IF NOT pgbaton.acts_for(r.service) THEN
        PERFORM pgbaton.refuse('job', resource, r.service);
    END IF;
    clock := clock_timestamp();
    last_run := r.ran_at;
    disbelieved := coalesce(last_run > clock + pgbaton.run_tolerance(at_least), false);
    next_run := CASE WHEN NOT disbelieved THEN last_run + at_least END;
    due := last_run IS NULL
        OR ((next_run <= clock OR disbelieved OR force OR (retry_failed AND r.failed IS TRUE))
            AND coalesce(token, r.token) >= r.token);
    IF token IS NULL OR NOT due THEN
        RETURN;
    END IF;
    INSERT INTO pgbaton.last_run AS l (resource, token, ran_at, service, at_least, failed)
    VALUES (resource, token, clock, pgbaton.service(), at_least, unended)
        ON CONFLICT ON CONSTRAINT last_run_pkey DO UPDATE
       SET token = excluded.token, ran_at = excluded.ran_at, at_least = excluded.at_least, failed = excluded.failed,
           ended_at = NULL, error = NULL
     WHERE l.token < excluded.token AND pgbaton.acts_for(l.service);
    due := FOUND; -- if not, somebody with a newer lock was faster
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
END;
$$;

-- Says how a run has ended that was begun with the token, as safely as its beginning was recorded. Returns whether it is
-- still the last one.
CREATE FUNCTION pgbaton.end_run(resource text, token bigint, failed boolean, error text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole;
BEGIN
    IF failed IS NULL THEN
        RAISE EXCEPTION 'pgbaton.end_run: failed is NULL' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT r.service INTO owner FROM pgbaton.last_run AS r WHERE r.resource = end_run.resource FOR UPDATE;
    IF NOT pgbaton.acts_for(owner) THEN
        PERFORM pgbaton.refuse('job', resource, owner);
    END IF;
    UPDATE pgbaton.last_run AS r
       SET ended_at = clock_timestamp(), failed = end_run.failed,
           error = CASE WHEN end_run.failed THEN left(end_run.error, 1000) END
     WHERE r.resource = end_run.resource AND r.token = end_run.token;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
    RETURN true;
END;
$$;

-- The last run of a job: one row, or none if there never was one. ended_at is NULL if it goes on, or nobody has said that it
-- has ended; failed and error are NULL until then.
CREATE FUNCTION pgbaton.look_run(
    resource text, OUT last_run timestamptz, OUT ended_at timestamptz, OUT failed boolean, OUT error text, OUT token bigint)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r pgbaton.last_run;
BEGIN
    SELECT l.* INTO r FROM pgbaton.last_run AS l WHERE l.resource = look_run.resource;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF NOT pgbaton.acts_for(r.service) THEN
        PERFORM pgbaton.refuse('job', resource, r.service);
    END IF;
    last_run := r.ran_at;
    ended_at := r.ended_at;
    token := r.token;
    IF ended_at IS NOT NULL THEN
        failed := r.failed;
        error := r.error;
    END IF;
    RETURN NEXT;
END;
$$;

-- Forgets when a job has run, so that it may at once, and returns whether there was anything to forget. A run that goes on is
-- not stopped.
CREATE FUNCTION pgbaton.forget_run(resource text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole;
BEGIN
    SELECT r.service INTO owner FROM pgbaton.last_run AS r WHERE r.resource = forget_run.resource FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF NOT pgbaton.acts_for(owner) THEN
        PERFORM pgbaton.refuse('job', resource, owner);
    END IF;
    DELETE FROM pgbaton.last_run AS r WHERE r.resource = forget_run.resource;
    RETURN FOUND;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 11, 1;
END;
