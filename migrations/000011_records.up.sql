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
              HINT = format('GRANT %s TO %s makes the two one service; an operator moves what is there with '
                            'SELECT pgbaton.assign(%L, %L, %L); else choose another name, with the service''s as its prefix.',
                            service, coalesce(pgbaton.service(), pgbaton.session_role()::regrole), what, left(name, 512),
                            coalesce(pgbaton.service(), pgbaton.session_role()::regrole));
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
     WHERE l.token < excluded.token AND pgbaton.acts_for(l.service)
       AND (r.resource IS NOT NULL -- locked and judged above; else somebody was faster with the first run of all
            OR force OR (retry_failed AND l.failed IS TRUE) OR l.ran_at + record_run.at_least <= clock
            OR l.ran_at > clock + pgbaton.run_tolerance(record_run.at_least));
    due := FOUND; -- if not, somebody with a newer lock, or with the first run, was faster
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

-- Raises unless the session may do what concerns everybody.
CREATE FUNCTION pgbaton.require_operator(call text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pgbaton.operates() THEN
        RAISE EXCEPTION '% concerns every service, and the role % is no operator', call, pgbaton.session_role()::regrole
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('Call it as the owner of the schema pgbaton, or let that one SELECT pgbaton.grant_operator(%L).',
                                pgbaton.session_role()::regrole);
    END IF;
END;
$$;

--
-- Fences
--

ALTER TABLE pgbaton.fence ADD COLUMN service regrole;

COMMENT ON COLUMN pgbaton.fence.service IS 'whose it is; NULL is everybody''s';

-- As before, and: a resource belongs to the service that has fenced it first, and a token can have been drawn. Tokens may come
-- from another database, so they are bounded by the clock, from which every sequence of tokens was set off and which
-- it does not outrun, and an hour; only a token of this database's own sequence may be greater.
CREATE OR REPLACE FUNCTION pgbaton.fence(resource text, token bigint, shared boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    salt    CONSTANT bigint := 6539763025470766922;
    name    CONSTANT text COLLATE "C" := resource;
    before  text;
    newest  bigint;
    seen_at timestamptz;
    owner   regrole;
BEGIN
    IF (octet_length(name) BETWEEN 1 AND 512 AND token BETWEEN 1 AND 9007199254740991) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.fence: a resource has 1 to 512 bytes and a token is above 0 and below 2^53'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF token > (extract(epoch FROM clock_timestamp()) - 1577836800 + 3600)::bigint * 4096000 AND NOT pgbaton.drawn(token) THEN
        RAISE EXCEPTION 'pgbaton.fence: token % was never drawn: it is far ahead of the clock and of the sequence', token
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
        SELECT f.token, f.service INTO newest, owner FROM pgbaton.fence AS f WHERE f.resource = name FOR SHARE;
        IF NOT FOUND THEN
            PERFORM pg_advisory_xact_lock_shared(hashtextextended(name, salt));
            SELECT f.token, f.service INTO newest, owner FROM pgbaton.fence AS f WHERE f.resource = name FOR SHARE;
        END IF;
    ELSE
        LOOP
            SELECT f.token, f.seen_at, f.service INTO newest, seen_at, owner
              FROM pgbaton.fence AS f WHERE f.resource = name FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
            PERFORM pg_advisory_xact_lock(hashtextextended(name, salt));
            INSERT INTO pgbaton.fence AS f VALUES (name, fence.token, clock_timestamp(), pgbaton.service())
            ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
        END LOOP;
    END IF;
    IF owner IS NOT NULL AND NOT pgbaton.acts_for(owner) THEN
        PERFORM pgbaton.refuse('fence', name, owner);
    END IF;
    IF newest > token THEN
        RAISE EXCEPTION 'token % of % is stale: % has been seen', token, quote_literal(name), newest
            USING ERRCODE = 'PB001',
                  DETAIL = jsonb_build_object('resource', name, 'token', token, 'newest', newest)::text;
    END IF;
    IF shared THEN
        RETURN;
    END IF;
    IF newest < token OR seen_at NOT BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 minute' THEN
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
-- that is forgotten accepts any token: choose a time that no paused holder outlives. One that claims to have been seen in the
-- future, by a clock that was ahead, is taken for seen just now.
CREATE OR REPLACE FUNCTION pgbaton.prune_fences(older_than interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.prune_fences');
    IF (older_than >= interval '1 hour') IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.prune_fences: older_than is %, less than an hour', coalesce(older_than::text, 'NULL')
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'A resource that is forgotten accepts the token of a holder that was paused as long.';
    END IF;
    WITH future AS MATERIALIZED (
        SELECT f.resource FROM pgbaton.fence AS f
        WHERE f.seen_at > clock_timestamp() + interval '1 minute' FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE pgbaton.fence AS f SET seen_at = clock_timestamp() FROM future WHERE f.resource = future.resource;
    WITH old AS MATERIALIZED (
        SELECT f.resource FROM pgbaton.fence AS f
        WHERE f.seen_at < clock_timestamp() - older_than FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.fence AS f USING old WHERE f.resource = old.resource;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

-- As before, and: a row that an UPDATE moves to another partition is deleted in one and inserted into the other, after the
-- triggers for the UPDATE, which have compared the tokens. That DELETE needs none. So in a partition the trigger
-- for UPDATE leaves word of the row as it was, and the one for DELETE looks whether the row is that. Word that is not heard
-- at once stays until the next row's, but the row is another by then: one that an UPDATE does not change does not move.
CREATE OR REPLACE FUNCTION pgbaton.fence_guard() RETURNS trigger
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
    IF TG_OP = 'DELETE' AND coalesce(current_setting('pgbaton.moves', true), '') <> '' THEN
        IF current_setting('pgbaton.moves') = hashtextextended(OLD::text, TG_RELID::bigint)::text THEN
            PERFORM set_config('pgbaton.moves', '', true);
            RETURN OLD;
        END IF;
        PERFORM set_config('pgbaton.moves', '', true);
    END IF;
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
        NEW := jsonb_populate_record(NEW, jsonb_build_object(fenced, new_token));
    END IF;
    IF TG_OP = 'UPDATE' AND pg_partition_root(TG_RELID) IS NOT NULL THEN
        PERFORM set_config('pgbaton.moves', CASE WHEN NEW *<> OLD
            THEN hashtextextended(OLD::text, TG_RELID::bigint)::text ELSE '' END, true);
    END IF;
    RETURN NEW;
END;
$$;

--
-- Leaders. Each service has rows of its own, even for one name: they decide nothing, and so nobody can be in another's way.
--

ALTER TABLE pgbaton.leader ADD COLUMN service regrole, DROP CONSTRAINT leader_pkey;
UPDATE pgbaton.leader SET service = '-';
ALTER TABLE pgbaton.leader ADD CONSTRAINT leader_pkey PRIMARY KEY (name, service);

COMMENT ON COLUMN pgbaton.leader.service IS 'whose it is; "-", the role 0, is everybody''s';

-- Raises unless a holder is the session, or nobody: the advisory lock that says that a holder lives is the session's own
-- or free. A holder with an id below zero has no session, and nothing of these tables.
CREATE FUNCTION pgbaton.require_session(call text, holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (holder > 0 AND pg_try_advisory_xact_lock(holder)) IS NOT TRUE THEN
        RAISE EXCEPTION '%: the holder % is not this session', call, coalesce(holder::text, 'NULL')
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A session becomes a holder by pgbaton.enlist.';
    END IF;
END;
$$;

-- Records the terms that a holder leads, and returns those of the names whose leader was asked to resign. To be
-- called again now and then, also because the holder's id may change during a term. A row with a greater term, or
-- one whose leader has resigned from this term, stays as it is. A row of a leader that is gone for a month is removed on the
-- way, a few at a time; a record of a term before that one, which comes later still, is taken for a new one.
CREATE OR REPLACE FUNCTION pgbaton.keep_leaders(names text[], terms bigint[], holder bigint, holder_name text)
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me CONSTANT regrole := coalesce(pgbaton.service(), 0::oid::regrole);
BEGIN
    IF cardinality(names) > 10000 OR octet_length(keep_leaders.holder_name) > 512
       OR EXISTS (SELECT FROM unnest(names, terms) AS u (name, term)
               WHERE (octet_length(u.name) BETWEEN 1 AND 512 AND u.term BETWEEN 1 AND 9007199254740991) IS NOT TRUE) THEN
        RAISE EXCEPTION 'pgbaton.keep_leaders: a name has 1 to 512 bytes, a holder''s up to 512, a term is above 0 and below '
            '2^53, and there are up to 10,000 of them'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pgbaton.drawn((SELECT max(t) FROM unnest(terms) AS t)) THEN
        RAISE EXCEPTION 'pgbaton.keep_leaders: a term was never drawn in this database' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgbaton.require_session('pgbaton.keep_leaders', holder);
    INSERT INTO pgbaton.leader AS l (name, service, holder, holder_name, term, since)
    SELECT u.name, me, keep_leaders.holder, coalesce(keep_leaders.holder_name, ''), u.term, clock_timestamp()
      FROM unnest(names, terms) AS u (name, term)
      LEFT JOIN pgbaton.leader AS old ON old.name = u.name AND old.service = me
     WHERE old.name IS NULL OR old.term < u.term OR (old.term = u.term AND old.holder <> keep_leaders.holder)
     ORDER BY u.name -- so that two who do it at the same time do not wait for one another
        ON CONFLICT ON CONSTRAINT leader_pkey DO UPDATE
       SET holder = excluded.holder, holder_name = excluded.holder_name, term = excluded.term,
           since = CASE WHEN l.term = excluded.term THEN l.since ELSE excluded.since END,
           resign_requested = l.term = excluded.term AND l.resign_requested
     WHERE l.term < excluded.term OR (l.term = excluded.term AND l.holder <> excluded.holder);
    IF FOUND THEN
        PERFORM pgbaton.prune_leaders(interval '30 days', 10);
    END IF;
    RETURN QUERY
    SELECT DISTINCT l.name FROM unnest(names, terms) AS u (name, term)
      JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
     WHERE l.resign_requested AND pgbaton.acts_for(l.service);
END;
$$;

-- Removes up to so many rows of leaders that are gone and whose terms began so long ago.
CREATE FUNCTION pgbaton.prune_leaders(older_than interval, most bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT l.name, l.service FROM pgbaton.leader AS l
         WHERE l.since < clock_timestamp() - older_than AND pgbaton.present(l.holder) IS NOT TRUE
         LIMIT most FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.leader AS l USING old WHERE l.name = old.name AND l.service = old.service;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

-- Says that terms are over.
CREATE OR REPLACE FUNCTION pgbaton.strike_leaders(names text[], terms bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WITH ended AS MATERIALIZED (
        SELECT l.name, l.service FROM unnest(names, terms) AS u (name, term)
          JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
         WHERE l.holder IS NOT NULL AND pgbaton.acts_for(l.service)
         ORDER BY l.name, l.service FOR NO KEY UPDATE OF l)
    UPDATE pgbaton.leader AS l SET holder = NULL, resign_requested = false
      FROM ended WHERE l.name = ended.name AND l.service = ended.service;
END;
$$;

-- Who leads, of those for whose service the session may act: one row, or none if nobody does. A leader whose session is gone
-- is none.
CREATE OR REPLACE FUNCTION pgbaton.leader_of(name text, OUT holder_name text, OUT term bigint, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT l.holder_name, l.term, l.since FROM pgbaton.leader AS l
     WHERE l.name = leader_of.name AND pgbaton.acts_for(l.service) AND pgbaton.present(l.holder)
     ORDER BY l.service = pgbaton.service() DESC NULLS LAST, l.term DESC LIMIT 1;
END;
$$;

-- Asks the leader, of those for whose service the session may act, to resign, and returns the term that is asked to end;
-- NULL if nobody leads.
CREATE OR REPLACE FUNCTION pgbaton.request_resign(name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked bigint;
BEGIN
    WITH asked_to AS (
        UPDATE pgbaton.leader AS l SET resign_requested = true
         WHERE l.name = request_resign.name AND pgbaton.acts_for(l.service) AND pgbaton.present(l.holder)
        RETURNING l.term)
    SELECT max(a.term) INTO asked FROM asked_to AS a;
    RETURN asked;
END;
$$;

--
-- Waits. Each service sees its own: what it publishes can end a wait, and so it is believed within one service only. A
-- cycle of waits of several services is not found; their waits end as their contexts do.
--

ALTER TABLE pgbaton.wait
    ADD COLUMN service regrole,
    ADD COLUMN held    integer NOT NULL DEFAULT 0;
ALTER TABLE pgbaton.wait_look ADD COLUMN service regrole;

COMMENT ON COLUMN pgbaton.wait.service IS 'whose it is; NULL is nobody''s';
COMMENT ON COLUMN pgbaton.wait.held IS 'how many locks are held by whoever waits';
COMMENT ON COLUMN pgbaton.wait_look.service IS 'whose it is; NULL is nobody''s';

-- Publishes waits and returns their ids in the order given, which is ascending. What is held by the first of them are
-- the first held[1] elements of the last three arrays, and so on. Rows of holders that are gone are removed on the way.
-- A service has up to 20,000 waits, which hold up to a million locks: others read past them.
CREATE OR REPLACE FUNCTION pgbaton.publish_waits(
    holder bigint, names text[], keys bigint[], pairs boolean[], shared boolean[],
    held integer[], held_keys bigint[], held_pairs boolean[], held_shared boolean[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me        CONSTANT regrole := pgbaton.service();
    waits     CONSTANT bigint := cardinality(keys);
    locks     CONSTANT bigint := (SELECT coalesce(sum(h), 0) FROM unnest(held) AS h);
    published bigint[];
BEGIN
    IF (waits = cardinality(names) AND waits = cardinality(pairs) AND waits = cardinality(publish_waits.shared)
        AND waits = cardinality(publish_waits.held) AND locks = cardinality(publish_waits.held_keys)
        AND locks = cardinality(publish_waits.held_pairs) AND locks = cardinality(publish_waits.held_shared)
        AND NOT EXISTS (SELECT FROM unnest(publish_waits.held) AS h WHERE (h >= 0) IS NOT TRUE)) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.publish_waits: the arrays do not fit together' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgbaton.require_session('pgbaton.publish_waits', holder);
    PERFORM pgbaton.prune_waits(1000, 100);
    IF waits > 20000 - (SELECT count(*) FROM pgbaton.wait AS w WHERE w.service IS NOT DISTINCT FROM me)
       OR locks > 1000000 - (SELECT coalesce(sum(w.held), 0) FROM pgbaton.wait AS w WHERE w.service IS NOT DISTINCT FROM me) THEN
        RAISE EXCEPTION 'pgbaton.publish_waits: the service has more than 20,000 waits, or they hold more than a million locks'
            USING ERRCODE = 'program_limit_exceeded';
    END IF;
    WITH given AS (
        SELECT u.place, u.name, u.key, u.pair, u.shared, u.held,
               (sum(u.held) OVER (ORDER BY u.place) - u.held)::integer AS before
        FROM unnest(publish_waits.names, publish_waits.keys, publish_waits.pairs, publish_waits.shared, publish_waits.held)
             WITH ORDINALITY AS u (name, key, pair, shared, held, place)),
    added AS (
        INSERT INTO pgbaton.wait AS w (
            holder, since, name, key, pair, shared, held_keys, held_pairs, held_shared, service, held)
        SELECT publish_waits.holder, clock_timestamp(), left(g.name, 600), g.key, g.pair, g.shared,
               publish_waits.held_keys[g.before + 1 : g.before + g.held],
               publish_waits.held_pairs[g.before + 1 : g.before + g.held],
               publish_waits.held_shared[g.before + 1 : g.before + g.held],
               me, g.held
        FROM given AS g ORDER BY g.place
        RETURNING w.id)
    SELECT array_agg(a.id ORDER BY a.id) INTO published FROM added AS a;
    RETURN coalesce(published, '{}');
END;
$$;

-- Removes up to so many waits, and looks, of holders that are gone.
CREATE FUNCTION pgbaton.prune_waits(most_waits bigint, most_looks bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    waits bigint;
    looks bigint;
BEGIN
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h
         WHERE h.holder < 0 OR NOT pgbaton.present(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.wait AS w
         WHERE w.holder IN (SELECT d.holder FROM dead AS d) LIMIT most_waits FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait AS w USING old WHERE w.id = old.id;
    GET DIAGNOSTICS waits = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT l.holder FROM pgbaton.wait_look AS l
         WHERE l.holder < 0 OR NOT pgbaton.present(l.holder) LIMIT most_looks FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait_look AS l USING old WHERE l.holder = old.holder;
    GET DIAGNOSTICS looks = ROW_COUNT;
    RETURN waits + looks;
END;
$$;

-- Withdraws waits of a holder of the session's service, all if ids is NULL, and returns how many there were. The holder may be
-- another session: that of a client before it lost it.
CREATE OR REPLACE FUNCTION pgbaton.withdraw_waits(holder bigint, ids bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    withdrawn integer;
BEGIN
    IF withdraw_waits.ids IS NULL THEN
        DELETE FROM pgbaton.wait AS w WHERE w.holder = withdraw_waits.holder AND pgbaton.acts_for(w.service);
    ELSE
        DELETE FROM pgbaton.wait AS w USING unnest(withdraw_waits.ids) AS i (id)
        WHERE w.id = i.id AND w.holder = withdraw_waits.holder AND pgbaton.acts_for(w.service);
    END IF;
    GET DIAGNOSTICS withdrawn = ROW_COUNT;
    RETURN withdrawn;
END;
$$;

-- The waits of all holders that live, of the session's service; an operator who does not look for a holder sees those of all.
-- A holder says which look of its own it is, and so that its rows are right.
CREATE OR REPLACE FUNCTION pgbaton.waits(looking bigint DEFAULT NULL, look bigint DEFAULT NULL) RETURNS TABLE (
    id bigint, holder bigint, looks bigint, seconds double precision, name text, key bigint, pair boolean, shared boolean,
    held_keys bigint[], held_pairs boolean[], held_shared boolean[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me       CONSTANT regrole := pgbaton.service();
    everyone CONSTANT boolean := waits.looking IS NULL AND pgbaton.operates();
BEGIN
    IF waits.looking IS NOT NULL THEN
        PERFORM pgbaton.require_session('pgbaton.waits', waits.looking);
        UPDATE pgbaton.wait_look AS l SET looks = waits.look, service = me WHERE l.holder = waits.looking;
        IF NOT FOUND THEN
            INSERT INTO pgbaton.wait_look (holder, looks, service) VALUES (waits.looking, waits.look, me);
        END IF;
    END IF;
    RETURN QUERY
    WITH own AS MATERIALIZED (
        SELECT w.* FROM pgbaton.wait AS w WHERE w.service IS NOT DISTINCT FROM me OR everyone),
    alive AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM own AS w) AS h WHERE h.holder > 0 AND pgbaton.present(h.holder))
    SELECT w.id, w.holder, coalesce(l.looks, 0), extract(epoch FROM clock_timestamp() - w.since)::double precision,
           w.name, w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM own AS w JOIN alive AS a ON a.holder = w.holder
    LEFT JOIN pgbaton.wait_look AS l ON l.holder = w.holder AND l.service IS NOT DISTINCT FROM w.service;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 11, 1;
END;
