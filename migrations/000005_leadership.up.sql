-- Who leads, and when a job has last run. The leader's lock is an ordinary one on pgbaton.key('pgbaton/leader/' ||
-- name), and its token is the term. The rows here say who holds it; they decide nothing.
--
-- Locks: creates tables and functions and replaces another; waits for nobody.

-- One row for each name that was ever led. A row of a leader that has resigned stays, without a holder, so that
-- a late record of an older term is known as one.
CREATE TABLE pgbaton.leader (
    name             text COLLATE pg_catalog."C" PRIMARY KEY,
    holder           bigint,
    holder_name      text        NOT NULL,
    term             bigint      NOT NULL,
    since            timestamptz NOT NULL,
    resign_requested boolean     NOT NULL DEFAULT false
) WITH (fillfactor = 50);

COMMENT ON COLUMN pgbaton.leader.holder IS 'see pgbaton.holder; NULL after the leader has resigned';
COMMENT ON COLUMN pgbaton.leader.term IS 'fencing token of the leader''s lock';

-- Records the terms that a holder leads, and returns those of the names whose leader was asked to resign. To be
-- called again now and then, also because the holder's id may change during a term. A row with a greater term, or
-- one whose leader has resigned from this term, stays as it is.
CREATE FUNCTION pgbaton.keep_leaders(names text[], terms bigint[], holder bigint, holder_name text) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM unnest(names, terms) AS u (name, term)
               WHERE (octet_length(u.name) BETWEEN 1 AND 512 AND u.term BETWEEN 1 AND 9007199254740991) IS NOT TRUE) THEN
        RAISE EXCEPTION 'pgbaton.keep_leaders: a name has 1 to 512 bytes and a term is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO pgbaton.leader AS l (name, holder, holder_name, term, since)
    SELECT u.name, keep_leaders.holder, coalesce(keep_leaders.holder_name, ''), u.term, clock_timestamp()
      FROM unnest(names, terms) AS u (name, term)
      LEFT JOIN pgbaton.leader AS old ON old.name = u.name
     WHERE old.name IS NULL OR old.term < u.term OR (old.term = u.term AND old.holder <> keep_leaders.holder)
     ORDER BY u.name -- so that two who do it at the same time do not wait for one another
        ON CONFLICT ON CONSTRAINT leader_pkey DO UPDATE
       SET holder = excluded.holder, holder_name = excluded.holder_name, term = excluded.term,
           since = CASE WHEN l.term = excluded.term THEN l.since ELSE excluded.since END,
           resign_requested = l.term = excluded.term AND l.resign_requested
     WHERE l.term < excluded.term OR (l.term = excluded.term AND l.holder <> excluded.holder);
    RETURN QUERY
    SELECT l.name FROM unnest(names, terms) AS u (name, term)
      JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
     WHERE l.resign_requested;
END;
$$;

-- Says that terms are over.
CREATE FUNCTION pgbaton.strike_leaders(names text[], terms bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WITH ended AS MATERIALIZED (
        SELECT l.name FROM unnest(names, terms) AS u (name, term)
          JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
         WHERE l.holder IS NOT NULL
         ORDER BY l.name FOR NO KEY UPDATE OF l)
    UPDATE pgbaton.leader AS l SET holder = NULL, resign_requested = false FROM ended WHERE l.name = ended.name;
END;
$$;

-- Who leads: one row, or none if nobody does. A leader whose session is gone is none.
CREATE FUNCTION pgbaton.leader_of(name text, OUT holder_name text, OUT term bigint, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT l.holder_name, l.term, l.since FROM pgbaton.leader AS l
     WHERE l.name = leader_of.name AND pgbaton.present(l.holder);
END;
$$;

-- Asks the leader to resign, and returns the term that is asked to end; NULL if nobody leads.
CREATE FUNCTION pgbaton.request_resign(name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked bigint;
BEGIN
    UPDATE pgbaton.leader AS l SET resign_requested = true
     WHERE l.name = request_resign.name AND pgbaton.present(l.holder)
    RETURNING l.term INTO asked;
    RETURN asked;
END;
$$;

-- When a job has begun to run last; the resource is named as that of a fence, after the key of the job's lock.
CREATE TABLE pgbaton.last_run (
    resource text COLLATE pg_catalog."C" PRIMARY KEY,
    token    bigint      NOT NULL,
    ran_at   timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON COLUMN pgbaton.last_run.token IS 'of the lock under which it ran';
COMMENT ON COLUMN pgbaton.last_run.ran_at IS 'when the run was recorded, just before it began';

-- Says whether a job may run: whether its last run, if there was one, began at_least ago. With a token, which the
-- caller's lock on the job has, a run that may begin is recorded, and the commit of that is flushed to this server's
-- disk whatever synchronous_commit says; a token that is older than the last run's records nothing. Without a
-- token it only looks. last_run and next_run are NULL if there never was a run.
CREATE FUNCTION pgbaton.begin_run(
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

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 5, 1;
END;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
