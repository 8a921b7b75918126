-- The portable set: leases, permits, leaders, jobs and fences for engines that speak PostgreSQL's protocol and SQL and cannot run
-- the full set. It uses functions of LANGUAGE sql and plain tables, and nothing that belongs to a session or that such engines lack:
-- see docs/ground.md. Functions that the full set has too have the same names, arguments and results there.
--
-- Every client is one without a session. So its id as a holder is below zero, only the clock says that it is gone, and nobody is told
-- when something comes free. There are no services: a role that may use the schema may use everything in it.
--
-- Every function is correct at every isolation level. A decision about a row is a change of that row, or is made with the row locked,
-- by a statement before the one that decides: under READ COMMITTED the later statement sees what the lock has waited for; above it, the
-- lock itself fails with 40001 if the row is newer than the snapshot, and the client sends the transaction again.
--
-- The bodies are parsed here, once, so a search_path means nothing to them. An error is raised by pgbaton.refuse.
--
-- Locks: creates new objects only; waits for nobody.

SET LOCAL search_path = pg_catalog, pg_temp; -- for the names in the bodies

CREATE SCHEMA pgbaton;

CREATE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 1, 1;
END;

-- That this is the portable set, and why it was taken. Migrations of the set lock the row.
CREATE TABLE pgbaton.portable (
    singleton boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    reason    text        NOT NULL,
    made_at   timestamptz NOT NULL
);

INSERT INTO pgbaton.portable (reason, made_at) VALUES ('its migration was run by hand', pg_catalog.clock_timestamp());

CREATE FUNCTION pgbaton.portable_reason() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
BEGIN ATOMIC
    SELECT p.reason FROM pgbaton.portable AS p;
END;

-- Fails with an SQLSTATE and a text for people. There is no other way to raise an error in SQL alone: the text is no number, and the
-- client reads both from what the server says about that. Nothing of it is a constant, so that no planner tries it out beforehand.
CREATE FUNCTION pgbaton.refuse(code text, said text) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN ('pgbaton/' || code || '/' || said || left(clock_timestamp()::text, 0))::bigint;

-- Sets what the transaction needs, where the engine knows of it: nobody shall wait for a row for ever, and what is granted must outlive a
-- crash and a failover, since its holder goes on believing in it.
CREATE FUNCTION pgbaton.pin() RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT set_config('lock_timeout', '500ms', true) WHERE current_setting('lock_timeout', true) = '0';
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit', true) IN ('off', 'local');
END;

-- Refuses a holder that is none without a session.
CREATE FUNCTION pgbaton.require_holder(holder bigint) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT pgbaton.refuse('22023', 'the id of a holder is below zero in the portable schema') WHERE (holder < 0) IS NOT TRUE;
    SELECT pgbaton.pin();
END;

-- The least token that is given now: milliseconds since 2020-01-01, shifted left by 12.
CREATE FUNCTION pgbaton.clock_token() RETURNS bigint
LANGUAGE sql VOLATILE
RETURN ((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1577836800000) << 12;

-- Whether a token can have been given: it is not ahead of the clock by more than that may have been set back.
CREATE FUNCTION pgbaton.drawn(token bigint) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN token > 0 AND token < 9007199254740992 AND token <= pgbaton.clock_token() + 3600::bigint * 4096000;

--
-- Leases: see migration 14 of the full set. Here one that is held is anybody's when it has expired by the clock.
--

CREATE TABLE pgbaton.lease (
    key        bigint  NOT NULL,
    pair       boolean NOT NULL,
    last       bigint  NOT NULL,
    holder     bigint,
    token      bigint,
    expires_at timestamptz,
    length     integer,
    shared     boolean NOT NULL DEFAULT false,
    next       bigint,
    next_since timestamptz,
    next_until timestamptz,
    name       text,
    PRIMARY KEY (key, pair)
);

-- A row is made with the key's row of pgbaton.lease locked, and that row's last is raised at the same time.
CREATE TABLE pgbaton.lease_share (
    key        bigint      NOT NULL,
    pair       boolean     NOT NULL,
    holder     bigint      NOT NULL,
    token      bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    length     integer     NOT NULL,
    PRIMARY KEY (key, pair, holder)
);

CREATE TABLE pgbaton.lease_floor (
    singleton boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    last      bigint  NOT NULL
);

INSERT INTO pgbaton.lease_floor (last) VALUES (0);

CREATE TABLE pgbaton.lock_engine (
    singleton   boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    engine      text        NOT NULL CHECK (engine = 'lease'),
    recorded_by text        NOT NULL,
    recorded_at timestamptz NOT NULL
);

-- What the transactions of DoTx hold until they are over: a row, locked.
CREATE TABLE pgbaton.turn (
    key bigint NOT NULL PRIMARY KEY
);

-- Makes the rows of keys that have none.
CREATE FUNCTION pgbaton.make_leases(keys bigint[], pairs boolean[]) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO pgbaton.lease (key, pair, last)
    SELECT DISTINCT q.key, q.pair, coalesce((SELECT f.last FROM pgbaton.lease_floor AS f), 0) FROM unnest(keys, pairs) AS q (key, pair)
     WHERE NOT EXISTS (SELECT 1 FROM pgbaton.lease AS l WHERE l.key = q.key AND l.pair = q.pair)
     ORDER BY 1, 2
        ON CONFLICT DO NOTHING;
END;

-- Locks the rows of keys, in one order. A row may have been forgotten before it was locked: then it is made anew, and is the
-- transaction's own.
CREATE FUNCTION pgbaton.lock_leases(keys bigint[], pairs boolean[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.pin();
    SELECT pgbaton.make_leases(keys, pairs);
    SELECT l.key FROM unnest(keys, pairs) AS q (key, pair) JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
     ORDER BY l.key, l.pair
       FOR NO KEY UPDATE OF l;
    SELECT pgbaton.make_leases(keys, pairs);
END;

-- Serves a request of acquire_leases. What it wants is one of the numbers that are explained there. A request that waits leaves a row alone
-- that says whose turn it is, and does not wait for one that another transaction has: it comes again.
--
-- The row is judged in the statement that locks it if it is not locked yet, and then may be newer than the statement's look at the
-- shares. So nothing is granted if its last is not the one that the statement sees without locking.
CREATE FUNCTION pgbaton.serve_lease(
    p_holder bigint, p_length integer, p_key bigint, p_pair boolean, p_share boolean, p_want integer, p_tokens integer, p_waited integer,
    p_name text)
RETURNS TABLE (token bigint, drawn integer)
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    -- What ends later than its own length from now was granted before the clock was set back.
    UPDATE pgbaton.lease AS l SET expires_at = clock_timestamp() + l.length * interval '1 ms'
     WHERE p_want <= 1 AND l.key = p_key AND l.pair = p_pair AND l.expires_at > clock_timestamp() + l.length * interval '1 ms' + interval '1 s';
    UPDATE pgbaton.lease_share AS s SET expires_at = clock_timestamp() + s.length * interval '1 ms'
     WHERE p_want <= 1 AND s.key = p_key AND s.pair = p_pair AND s.expires_at > clock_timestamp() + s.length * interval '1 ms' + interval '1 s';
    WITH gone AS MATERIALIZED (
        SELECT s.holder FROM pgbaton.lease_share AS s
         WHERE p_want <= 1 AND s.key = p_key AND s.pair = p_pair AND s.expires_at <= clock_timestamp()
           FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.lease_share AS s USING gone AS g
     WHERE s.key = p_key AND s.pair = p_pair AND s.holder = g.holder AND s.expires_at <= clock_timestamp();
    WITH found AS MATERIALIZED (
        SELECT l.last, l.holder, l.expires_at, l.shared, l.next, l.next_since, l.next_until, pgbaton.clock_token() AS least,
               clock_timestamp() AS at
          FROM pgbaton.lease AS l
         WHERE l.key = p_key AND l.pair = p_pair
           AND NOT coalesce(p_waited >= 0 AND p_want <= 1 AND l.holder <> p_holder
                            AND l.expires_at BETWEEN clock_timestamp() AND clock_timestamp() + l.length * interval '1 ms' + interval '1 s'
                            AND CASE WHEN l.next = p_holder THEN l.next_until > clock_timestamp() + interval '600 ms'
                                     ELSE l.next_until BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 min'
                                          AND l.next_since <= clock_timestamp() - p_waited * interval '1 ms' + interval '100 ms' END, false)
           FOR NO KEY UPDATE SKIP LOCKED),
    seen AS MATERIALIZED (
        SELECT l.last FROM pgbaton.lease AS l WHERE l.key = p_key AND l.pair = p_pair),
    others AS MATERIALIZED (
        SELECT coalesce(bool_or(s.holder <> p_holder), false) AS share, coalesce(bool_or(s.holder = p_holder), false) AS mine
          FROM pgbaton.lease_share AS s WHERE s.key = p_key AND s.pair = p_pair),
    judged AS MATERIALIZED (
        SELECT f.*, o.mine,
               coalesce(f.next = p_holder OR f.next_until NOT BETWEEN f.at AND f.at + interval '1 min', f.next IS NULL) AS turn,
               NOT coalesce(f.holder <> p_holder AND f.expires_at > f.at, false) AND (p_share OR NOT o.share)
                   AND coalesce(f.last = (SELECT s.last FROM seen AS s), false) AS free
          FROM found AS f CROSS JOIN others AS o),
    decided AS MATERIALIZED (
        SELECT j.*, p_want <= 1 AND j.free AND (j.turn OR p_want = 0) AS grants,
               p_want = 2 AND (coalesce(j.holder = p_holder, false) OR j.mine) AS draws,
               p_want <= 1 AND NOT (j.free AND (j.turn OR p_want = 0)) AND p_waited >= 0
                   AND CASE WHEN j.next = p_holder THEN j.next_until NOT BETWEEN j.at + interval '600 ms' AND j.at + interval '1 min'
                            ELSE j.turn OR j.next_since > j.at - p_waited * interval '1 ms' + interval '100 ms' END AS queues,
               p_want = 4 AND coalesce(j.next = p_holder, false) AS leaves
          FROM judged AS j),
    shares AS (
        INSERT INTO pgbaton.lease_share AS s (key, pair, holder, token, expires_at, length)
        SELECT p_key, p_pair, p_holder, greatest(d.last + 1, d.least), clock_timestamp() + p_length * interval '1 ms', p_length
          FROM decided AS d WHERE d.grants AND p_share
            ON CONFLICT (key, pair, holder) DO UPDATE
           SET token = excluded.token, expires_at = excluded.expires_at, length = excluded.length),
    unshares AS (
        DELETE FROM pgbaton.lease_share AS s USING decided AS d
         WHERE d.grants AND NOT p_share AND s.key = p_key AND s.pair = p_pair AND s.holder = p_holder),
    changed AS (
        UPDATE pgbaton.lease AS l
           SET last = CASE WHEN d.grants OR d.draws THEN greatest(d.last + 1, d.least) + p_tokens - 1 ELSE l.last END,
               holder = CASE WHEN d.grants THEN CASE WHEN NOT p_share THEN p_holder END ELSE l.holder END,
               token = CASE WHEN d.grants THEN CASE WHEN NOT p_share THEN greatest(d.last + 1, d.least) END ELSE l.token END,
               expires_at = CASE WHEN d.grants THEN CASE WHEN NOT p_share THEN clock_timestamp() + p_length * interval '1 ms' END
                                 ELSE l.expires_at END,
               length = CASE WHEN d.grants THEN CASE WHEN NOT p_share THEN p_length END ELSE l.length END,
               shared = CASE WHEN d.grants THEN p_share ELSE l.shared END,
               name = CASE WHEN d.grants THEN nullif(left(p_name, 512), '') ELSE l.name END,
               next = CASE WHEN d.queues THEN p_holder WHEN d.leaves OR (d.grants AND d.turn) THEN NULL ELSE l.next END,
               next_since = CASE WHEN d.queues THEN d.at - p_waited * interval '1 ms'
                                 WHEN d.leaves OR (d.grants AND d.turn) THEN NULL ELSE l.next_since END,
               next_until = CASE WHEN d.queues THEN d.at + interval '1 s'
                                 WHEN d.leaves OR (d.grants AND d.turn) THEN NULL ELSE l.next_until END
          FROM decided AS d
         WHERE l.key = p_key AND l.pair = p_pair AND (d.grants OR d.draws OR d.queues OR d.leaves)
        RETURNING l.last - p_tokens + 1 AS first, d.grants OR d.draws AS drew)
    SELECT c.first, p_tokens FROM changed AS c WHERE c.drew
     UNION ALL
    SELECT 0, 0 FROM decided AS d WHERE p_want = 3 AND d.turn;
END;

-- Takes, for a holder, keys that are free, draws tokens for keys that it holds, and looks for others that wait. Each request
-- has its place in the arrays: key and space of keys; shared or not; what it wants; how many tokens; and for how many
-- milliseconds the holder has waited for the key, -1 if it does not go on waiting; and, if there are names, that of the key for people.
-- What it wants is a number:
--
--   0 the key, also before those that wait      2 tokens for a key that it holds      4 to give up its turn
--   1 the key, after those that wait            3 to know whether others wait
--
-- Returns a row for each request that was granted: with the first token and how many were drawn, or, for 3, if nobody else waits.
-- The rows of all keys are locked before the first request is served, in one order, but for those of requests that wait.
CREATE FUNCTION pgbaton.acquire_leases(
    p_holder bigint, p_length integer, p_keys bigint[], p_pairs boolean[], p_shared boolean[], p_wants integer[], p_tokens integer[],
    p_waited integer[], p_with_lock boolean, p_names text[] DEFAULT NULL)
RETURNS TABLE (request integer, token bigint, drawn integer)
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.refuse('22023', 'a lease is 1 s to 1 h, and has 1 to 64 tokens; each request has its place in every array')
     WHERE (p_length BETWEEN 1000 AND 3600000 AND cardinality(p_keys) <= 100000 AND NOT p_with_lock
            AND cardinality(p_keys) = cardinality(p_pairs) AND cardinality(p_keys) = cardinality(p_shared)
            AND cardinality(p_keys) = cardinality(p_wants) AND cardinality(p_keys) = cardinality(p_tokens)
            AND cardinality(p_keys) = cardinality(p_waited) AND coalesce(cardinality(p_names) = cardinality(p_keys), p_names IS NULL) AND 1 <= ALL (p_tokens) AND 64 >= ALL (p_tokens)
            AND 0 <= ALL (p_wants) AND 4 >= ALL (p_wants) AND -1 <= ALL (p_waited)) IS NOT TRUE;
    SELECT pgbaton.make_leases(p_keys, p_pairs);
    SELECT l.key FROM unnest(p_keys, p_pairs, p_waited) AS q (key, pair, waited) JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
     WHERE q.waited < 0
     ORDER BY l.key, l.pair
       FOR NO KEY UPDATE OF l;
    SELECT pgbaton.make_leases(p_keys, p_pairs); -- as in lock_leases
    SELECT q.n::integer, s.token, s.drawn
      FROM (SELECT u.* FROM unnest(p_keys, p_pairs, p_shared, p_wants, p_tokens, p_waited, p_names) WITH ORDINALITY
                                AS u (key, pair, share, want, tokens, waited, name, n) ORDER BY u.key, u.pair, u.n OFFSET 0) AS q
     CROSS JOIN LATERAL pgbaton.serve_lease(p_holder, p_length, q.key, q.pair, q.share, q.want, q.tokens, q.waited, q.name) AS s;
END;

-- A key for a holder, exclusively: the first of as many tokens as asked for, or NULL.
CREATE FUNCTION pgbaton.acquire_lease(
    p_holder bigint, p_length integer, p_key bigint, p_pair boolean, p_want integer, p_tokens integer, p_name text DEFAULT NULL)
RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT (SELECT a.token FROM pgbaton.acquire_leases(
        p_holder, p_length, ARRAY[p_key], ARRAY[p_pair], ARRAY[false], ARRAY[p_want], ARRAY[p_tokens], ARRAY[-1], false, ARRAY[p_name]) AS a);
END;

-- Gives an exclusive lease back. False: it was not the holder's.
CREATE FUNCTION pgbaton.release_lease(p_holder bigint, p_key bigint, p_pair boolean, p_token bigint) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    WITH freed AS (
        UPDATE pgbaton.lease AS l SET holder = NULL, token = NULL, expires_at = NULL, length = NULL
         WHERE l.key = p_key AND l.pair = p_pair AND l.holder = p_holder AND l.token = p_token
        RETURNING l.key)
    SELECT count(*) > 0 FROM freed;
END;

-- Gives leases back, each if it is the holder's and has the token. Returns the places of those in the arrays.
CREATE FUNCTION pgbaton.release_leases(
    p_holder bigint, p_keys bigint[], p_pairs boolean[], p_shared boolean[], p_tokens bigint[], p_with_lock boolean)
RETURNS TABLE (request integer)
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT l.key FROM unnest(p_keys, p_pairs) AS q (key, pair) JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
     ORDER BY l.key, l.pair
       FOR NO KEY UPDATE OF l;
    WITH asked AS MATERIALIZED (
        SELECT q.* FROM unnest(p_keys, p_pairs, p_shared, p_tokens) WITH ORDINALITY AS q (key, pair, share, token, n)),
    alone AS (
        UPDATE pgbaton.lease AS l SET holder = NULL, token = NULL, expires_at = NULL, length = NULL
          FROM asked AS a
         WHERE NOT a.share AND l.key = a.key AND l.pair = a.pair AND l.holder = p_holder AND l.token = a.token
        RETURNING a.n),
    together AS (
        DELETE FROM pgbaton.lease_share AS s USING asked AS a
         WHERE a.share AND s.key = a.key AND s.pair = a.pair AND s.holder = p_holder AND s.token = a.token
        RETURNING a.n)
    SELECT a.n::integer FROM alone AS a UNION ALL SELECT t.n::integer FROM together AS t;
END;

-- Gives back all that holders have, but the keys that are named.
CREATE FUNCTION pgbaton.free_leases(p_holders bigint[], p_keys bigint[], p_pairs boolean[]) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT l.key FROM pgbaton.lease AS l
     WHERE l.holder = ANY (p_holders)
        OR (l.shared AND EXISTS (SELECT 1 FROM pgbaton.lease_share AS s
                                  WHERE s.key = l.key AND s.pair = l.pair AND s.holder = ANY (p_holders)))
     ORDER BY l.key, l.pair
       FOR NO KEY UPDATE OF l;
    UPDATE pgbaton.lease AS l SET holder = NULL, token = NULL, expires_at = NULL, length = NULL
     WHERE l.holder = ANY (p_holders)
       AND NOT EXISTS (SELECT 1 FROM unnest(p_keys, p_pairs) AS q (key, pair) WHERE q.key = l.key AND q.pair = l.pair);
    DELETE FROM pgbaton.lease_share AS s
     WHERE s.holder = ANY (p_holders)
       AND NOT EXISTS (SELECT 1 FROM unnest(p_keys, p_pairs) AS q (key, pair) WHERE q.key = s.key AND q.pair = s.pair);
END;

-- Locks what it can of the rows of keys, and if it is not all, waits for a moment.
CREATE FUNCTION pgbaton.grasp_leases(p_keys bigint[], p_pairs boolean[]) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    WITH mine AS MATERIALIZED (
        SELECT l.key FROM unnest(p_keys, p_pairs) AS q (key, pair) JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
           FOR NO KEY UPDATE OF l SKIP LOCKED)
    SELECT pg_sleep(0.025) WHERE (SELECT count(*) FROM mine) < cardinality(p_keys);
END;

-- Renews leases, each if it is the holder's, or was of one that the client was before, and has the token. Returns the
-- places of those in the arrays. With only_these everything else of the former holders is given back: an answer that was lost may have
-- granted it. A lease whose row another transaction has for a tenth of a second is not renewed, and ends when it was to end: its place is
-- returned below zero.
CREATE FUNCTION pgbaton.renew_leases(
    p_holder bigint, p_length integer, p_keys bigint[], p_pairs boolean[], p_shared boolean[], p_tokens bigint[], p_former bigint[],
    p_only_these boolean)
RETURNS TABLE (request integer)
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.refuse('22023', 'a lease is 1 s to 1 h')
     WHERE (p_length BETWEEN 1000 AND 3600000 AND cardinality(p_keys) <= 100000) IS NOT TRUE;
    SELECT pgbaton.free_leases(p_former, p_keys, p_pairs) WHERE p_only_these;
    SELECT pgbaton.grasp_leases(p_keys, p_pairs);
    SELECT pgbaton.grasp_leases(p_keys, p_pairs);
    SELECT pgbaton.grasp_leases(p_keys, p_pairs);
    SELECT pgbaton.grasp_leases(p_keys, p_pairs);
    WITH asked AS MATERIALIZED (
        SELECT q.* FROM unnest(p_keys, p_pairs, p_shared, p_tokens) WITH ORDINALITY AS q (key, pair, share, token, n)),
    found AS MATERIALIZED (
        SELECT a.* FROM asked AS a JOIN pgbaton.lease AS l ON l.key = a.key AND l.pair = a.pair
           FOR NO KEY UPDATE OF l SKIP LOCKED),
    alone AS (
        UPDATE pgbaton.lease AS l SET holder = p_holder, expires_at = clock_timestamp() + p_length * interval '1 ms', length = p_length
          FROM found AS f
         WHERE NOT f.share AND l.key = f.key AND l.pair = f.pair AND l.holder = ANY (p_former || p_holder) AND l.token = f.token
        RETURNING f.n),
    together AS (
        UPDATE pgbaton.lease_share AS s SET holder = p_holder, expires_at = clock_timestamp() + p_length * interval '1 ms', length = p_length
          FROM found AS f
         WHERE f.share AND s.key = f.key AND s.pair = f.pair AND s.holder = ANY (p_former || p_holder) AND s.token = f.token
        RETURNING f.n)
    SELECT a.n::integer FROM alone AS a
     UNION ALL
    SELECT t.n::integer FROM together AS t
     UNION ALL
    SELECT (-a.n)::integer FROM asked AS a
      LEFT JOIN pgbaton.lease AS l ON NOT a.share AND l.key = a.key AND l.pair = a.pair AND l.token = a.token AND l.holder = ANY (p_former || p_holder)
      LEFT JOIN pgbaton.lease_share AS s ON a.share AND s.key = a.key AND s.pair = a.pair AND s.token = a.token AND s.holder = ANY (p_former || p_holder)
     WHERE a.n NOT IN (SELECT f.n FROM found AS f)
       AND coalesce(l.expires_at, s.expires_at) > clock_timestamp() AND coalesce(l.length, s.length) >= p_length;
END;

-- Ends a holder of leases: what it holds is free.
CREATE FUNCTION pgbaton.leave_leases(p_holder bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.free_leases(ARRAY[p_holder], '{}', '{}');
END;

-- Tidies up, a thousand rows at most: keys that nobody has taken for an hour, and some of those of DoTx that no transaction has. A
-- token that is given later is greater than those of a row that was forgotten, also when the clock is set back: the newest is kept.
CREATE FUNCTION pgbaton.tend_leases() RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    WITH floor AS MATERIALIZED (
        SELECT f.last FROM pgbaton.lease_floor AS f FOR UPDATE SKIP LOCKED), -- one at a time
    old AS MATERIALIZED (
        SELECT l.key, l.pair FROM pgbaton.lease AS l
         WHERE (SELECT count(*) FROM floor) > 0 AND l.last < pgbaton.clock_token() - 3600::bigint * 4096000
           AND coalesce(l.next_until < clock_timestamp(), true)
           AND (l.holder IS NULL OR l.expires_at < clock_timestamp() - interval '1 hour')
           AND NOT (l.shared AND EXISTS (SELECT 1 FROM pgbaton.lease_share AS s
                                          WHERE s.key = l.key AND s.pair = l.pair AND s.expires_at >= clock_timestamp() - interval '1 hour'))
         LIMIT 1000 FOR UPDATE SKIP LOCKED),
    shares AS (DELETE FROM pgbaton.lease_share AS s USING old AS o WHERE s.key = o.key AND s.pair = o.pair),
    gone AS (DELETE FROM pgbaton.lease AS l USING old AS o WHERE l.key = o.key AND l.pair = o.pair RETURNING l.last)
    UPDATE pgbaton.lease_floor AS f SET last = g.last
      FROM (SELECT max(n.last) AS last FROM gone AS n) AS g WHERE g.last > f.last;
    WITH idle AS MATERIALIZED (
        SELECT t.key FROM pgbaton.turn AS t WHERE random() < 0.1 LIMIT 1000 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.turn AS t USING idle AS i WHERE t.key = i.key;
END;

-- The engine that is recorded; no row if there is none.
CREATE FUNCTION pgbaton.engine_record() RETURNS TABLE (engine text, recorded_by text, recorded_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER
BEGIN ATOMIC
    SELECT e.engine, e.recorded_by, e.recorded_at FROM pgbaton.lock_engine AS e;
END;

-- What a connection calls before it takes locks. It records the engine, which can only be one, if it is not recorded.
CREATE FUNCTION pgbaton.join_engine(p_id bigint, p_wanted text, p_name text, p_length integer) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_id);
    SELECT pgbaton.refuse('PB002', 'the portable schema has the engine lease, and not ' || p_wanted) WHERE (p_wanted = 'lease') IS NOT TRUE;
    INSERT INTO pgbaton.lock_engine (engine, recorded_by, recorded_at)
    SELECT 'lease', left(p_name, 512), clock_timestamp() WHERE NOT EXISTS (SELECT 1 FROM pgbaton.lock_engine)
        ON CONFLICT DO NOTHING;
END;

-- Makes the row that try_turn locks. To be committed at once: others wait for that.
CREATE FUNCTION pgbaton.make_turn(p_key bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    INSERT INTO pgbaton.turn (key) VALUES (p_key) ON CONFLICT DO NOTHING;
END;

-- Has a transaction of DoTx hold its key until it is over, unless another one holds it: then false. NULL: there is no row to lock.
CREATE FUNCTION pgbaton.try_turn(p_key bigint, p_share boolean) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    WITH alone AS MATERIALIZED (
        SELECT t.key FROM pgbaton.turn AS t WHERE t.key = p_key AND NOT p_share FOR NO KEY UPDATE SKIP LOCKED),
    together AS MATERIALIZED (
        SELECT t.key FROM pgbaton.turn AS t WHERE t.key = p_key AND p_share FOR SHARE SKIP LOCKED)
    SELECT CASE WHEN (SELECT count(*) FROM alone) + (SELECT count(*) FROM together) > 0 THEN true
                WHEN EXISTS (SELECT 1 FROM pgbaton.turn AS t WHERE t.key = p_key) THEN false END;
END;

-- Locks that end with the caller's transaction are PostgreSQL's own: there are none here.
CREATE FUNCTION pgbaton.lock_for_transaction(key bigint, pair boolean, shared boolean, wait_ms integer) RETURNS bigint
LANGUAGE sql VOLATILE
RETURN -4;

--
-- Holders of permits
--

CREATE TABLE pgbaton.holder (
    id            bigint      NOT NULL PRIMARY KEY,
    name          text        NOT NULL,
    since         timestamptz NOT NULL,
    attends_until timestamptz
);

CREATE TABLE pgbaton.semaphore (
    id         integer     NOT NULL PRIMARY KEY,
    name       text        NOT NULL UNIQUE,
    capacity   integer     NOT NULL CHECK (capacity BETWEEN 1 AND 10000),
    surplus    integer     NOT NULL DEFAULT 0 CHECK (surplus >= 0),
    last       bigint      NOT NULL DEFAULT 0,
    revision   integer     NOT NULL CHECK (revision >= 0),
    declared   integer,
    head       bigint,
    head_until timestamptz,
    opened_at  timestamptz NOT NULL
);

COMMENT ON COLUMN pgbaton.semaphore.last IS 'the newest token of the slots that were removed';

CREATE TABLE pgbaton.slot (
    semaphore  integer NOT NULL,
    slot       integer NOT NULL,
    holder     bigint,
    token      bigint  NOT NULL,
    expires_at timestamptz,
    lease      integer,
    closed     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (semaphore, slot)
);

COMMENT ON COLUMN pgbaton.slot.token IS 'the first of the 32 fencing tokens of the newest claim: permits handed over within the holder have later ones';

-- Forgets holders that hold nothing and were not heard of for a week. Returns how many.
CREATE FUNCTION pgbaton.forget_holders() RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    WITH old AS MATERIALIZED (
        SELECT h.id FROM pgbaton.holder AS h
         WHERE h.since < clock_timestamp() - interval '7 days' AND coalesce(h.attends_until < clock_timestamp(), true)
           AND NOT EXISTS (SELECT 1 FROM pgbaton.slot AS s WHERE s.holder = h.id)
         LIMIT 1000 FOR UPDATE SKIP LOCKED),
    gone AS (DELETE FROM pgbaton.holder AS h USING old AS o WHERE h.id = o.id RETURNING h.id)
    SELECT count(*)::integer FROM gone;
END;

-- Gives a holder its name.
CREATE FUNCTION pgbaton.enlist(p_id bigint, p_name text) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_id);
    SELECT pgbaton.refuse('22023', 'a name has at most 512 bytes') WHERE (octet_length(p_name) <= 512) IS NOT TRUE;
    INSERT INTO pgbaton.holder AS h (id, name, since) VALUES (p_id, p_name, clock_timestamp())
        ON CONFLICT (id) DO UPDATE SET name = excluded.name, since = excluded.since;
    SELECT pgbaton.forget_holders();
END;

-- Ends a holder: what it holds is free.
CREATE FUNCTION pgbaton.retire(p_holder bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT s.slot FROM pgbaton.slot AS s WHERE s.holder = p_holder ORDER BY s.semaphore, s.slot FOR NO KEY UPDATE;
    UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL WHERE s.holder = p_holder;
    DELETE FROM pgbaton.holder AS h WHERE h.id = p_holder;
END;

-- What is to be done now and then, by any client: old holders are forgotten, and claims that end later than their own
-- leases allow are cut short. Returns of which semaphores, and how many.
CREATE FUNCTION pgbaton.tend(OUT semaphore text, OUT slots integer) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.forget_holders();
    WITH wrong AS MATERIALIZED (
        SELECT s.semaphore AS id, s.slot FROM pgbaton.slot AS s
         WHERE s.expires_at > clock_timestamp() + s.lease * interval '1 ms' + interval '1 s'
           FOR NO KEY UPDATE SKIP LOCKED),
    cut AS (
        UPDATE pgbaton.slot AS s SET expires_at = clock_timestamp() + s.lease * interval '1 ms'
          FROM wrong AS w WHERE s.semaphore = w.id AND s.slot = w.slot
        RETURNING s.semaphore AS id)
    SELECT m.name, count(*)::integer FROM cut AS c JOIN pgbaton.semaphore AS m ON m.id = c.id GROUP BY m.name ORDER BY m.name;
END;

-- Removes slots that are more than the capacity, as far as they are free, and returns how many remain. While any do, all slots are
-- closed: the flag is in the row that a claim locks, so no claim can miss it.
CREATE FUNCTION pgbaton.settle_semaphore(p_semaphore integer) RETURNS integer
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT m.id FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore FOR NO KEY UPDATE;
    WITH free AS MATERIALIZED (
        SELECT s.slot FROM pgbaton.slot AS s
         WHERE s.semaphore = p_semaphore AND (s.holder IS NULL OR s.expires_at <= clock_timestamp())
         LIMIT (SELECT m.surplus FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore)
           FOR UPDATE SKIP LOCKED),
    gone AS (
        DELETE FROM pgbaton.slot AS s USING free AS f WHERE s.semaphore = p_semaphore AND s.slot = f.slot
        RETURNING s.token)
    UPDATE pgbaton.semaphore AS m SET surplus = m.surplus - g.slots, last = greatest(m.last, g.last + 31)
      FROM (SELECT count(*)::integer AS slots, max(n.token) AS last FROM gone AS n) AS g
     WHERE m.id = p_semaphore AND g.slots > 0;
    UPDATE pgbaton.slot AS s SET closed = NOT s.closed
     WHERE s.semaphore = p_semaphore AND s.closed <> ((SELECT m.surplus FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore) > 0);
    SELECT m.surplus FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore;
END;

-- Changes a capacity. Free slots are removed at once, held ones when they are free; until then none is claimed. Returns NULL when
-- there is no such semaphore. With all slots locked, none is being claimed.
CREATE FUNCTION pgbaton.resize_semaphore(p_semaphore integer, p_wanted integer) RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.pin();
    SELECT pgbaton.refuse('22023', 'a capacity is 1 to 10000') WHERE (p_wanted BETWEEN 1 AND 10000) IS NOT TRUE;
    SELECT pgbaton.refuse('54000', 'the semaphores have a million permits')
     WHERE p_wanted + (SELECT coalesce(sum(m.capacity + m.surplus), 0) FROM pgbaton.semaphore AS m WHERE m.id <> p_semaphore) > 1000000;
    SELECT m.id FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore FOR NO KEY UPDATE;
    SELECT s.slot FROM pgbaton.slot AS s WHERE s.semaphore = p_semaphore ORDER BY s.slot FOR NO KEY UPDATE;
    INSERT INTO pgbaton.slot (semaphore, slot, token)
    SELECT m.id, n, m.last FROM pgbaton.semaphore AS m CROSS JOIN generate_series(1, p_wanted) AS n
     WHERE m.id = p_semaphore AND NOT EXISTS (SELECT 1 FROM pgbaton.slot AS s WHERE s.semaphore = m.id AND s.slot = n)
     ORDER BY n LIMIT greatest(p_wanted - (SELECT count(*) FROM pgbaton.slot AS s WHERE s.semaphore = p_semaphore), 0);
    UPDATE pgbaton.semaphore AS m
       SET capacity = p_wanted, surplus = greatest((SELECT count(*) FROM pgbaton.slot AS s WHERE s.semaphore = m.id)::integer - p_wanted, 0)
     WHERE m.id = p_semaphore;
    SELECT pgbaton.settle_semaphore(p_semaphore);
    SELECT m.capacity FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore;
END;

-- Makes the semaphore if there is none of the name and a capacity is given, and tells its id and its capacity, which may be another.
-- Without a row: there is none. An id is random: it means nothing in another database.
--
-- A revision above zero counts the changes of the capacity in the code that opens it. Of all with which the semaphore was opened the
-- greatest decides; one that is not takes the capacity as it is. declared is the capacity that came with the greatest.
CREATE FUNCTION pgbaton.open_semaphore(
    p_name text, p_wanted integer, p_revision integer, OUT id integer, OUT capacity integer, OUT newest integer, OUT declared integer)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.pin();
    SELECT pgbaton.refuse('22023', 'a name has 1 to 512 bytes, a capacity is 1 to 10000')
     WHERE (octet_length(p_name) BETWEEN 1 AND 512 AND coalesce(p_wanted, 1) BETWEEN 1 AND 10000 AND p_revision >= 0
            AND (p_wanted IS NOT NULL OR p_revision = 0)) IS NOT TRUE;
    SELECT pgbaton.refuse('54000', 'the semaphores have a million permits')
     WHERE p_wanted + (SELECT coalesce(sum(m.capacity + m.surplus), 0) FROM pgbaton.semaphore AS m) > 1000000
       AND NOT EXISTS (SELECT 1 FROM pgbaton.semaphore AS m WHERE m.name = p_name);
    INSERT INTO pgbaton.semaphore (id, name, capacity, revision, declared, opened_at)
    SELECT 1 + floor(random() * 2147483646)::integer, p_name, p_wanted, p_revision, CASE WHEN p_revision > 0 THEN p_wanted END, clock_timestamp()
     WHERE p_wanted IS NOT NULL AND NOT EXISTS (SELECT 1 FROM pgbaton.semaphore AS m WHERE m.name = p_name)
        ON CONFLICT DO NOTHING;
    INSERT INTO pgbaton.slot (semaphore, slot, token)
    SELECT m.id, n, 0 FROM pgbaton.semaphore AS m CROSS JOIN generate_series(1, p_wanted) AS n
     WHERE m.name = p_name AND NOT EXISTS (SELECT 1 FROM pgbaton.slot AS s WHERE s.semaphore = m.id)
        ON CONFLICT DO NOTHING;
    UPDATE pgbaton.semaphore AS m SET opened_at = clock_timestamp()
     WHERE m.name = p_name AND m.opened_at < clock_timestamp() - interval '1 day';
    SELECT m.id FROM pgbaton.semaphore AS m WHERE m.name = p_name AND m.revision < p_revision FOR NO KEY UPDATE;
    SELECT pgbaton.resize_semaphore(m.id, p_wanted) FROM pgbaton.semaphore AS m WHERE m.name = p_name AND m.revision < p_revision;
    UPDATE pgbaton.semaphore AS m SET revision = p_revision, declared = p_wanted WHERE m.name = p_name AND m.revision < p_revision;
    SELECT m.id, m.capacity, m.revision, m.declared FROM pgbaton.semaphore AS m WHERE m.name = p_name;
END;

CREATE FUNCTION pgbaton.open_semaphore(p_name text, p_wanted integer, OUT id integer, OUT capacity integer)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT o.id, o.capacity FROM pgbaton.open_semaphore(p_name, p_wanted, 0) AS o;
END;

-- Whether a holder may claim: no other looks for slots at the moment.
CREATE FUNCTION pgbaton.may_claim(p_semaphore integer, p_holder bigint) RETURNS boolean
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT coalesce(m.head = p_holder OR m.head_until <= clock_timestamp(), true) FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore;
END;

-- Locks as many free slots as are wanted, and waits for a moment if there seem to be more than it could lock: SKIP LOCKED says "none
-- free" although one is, when another transaction looks at it and does not take it.
CREATE FUNCTION pgbaton.grasp_slots(p_semaphore integer, p_wanted bigint) RETURNS void
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    WITH mine AS MATERIALIZED (
        SELECT s.slot FROM pgbaton.slot AS s
         WHERE s.semaphore = p_semaphore AND NOT s.closed AND (s.holder IS NULL OR s.expires_at <= clock_timestamp())
         LIMIT p_wanted FOR UPDATE SKIP LOCKED)
    SELECT pg_sleep(0.0005)
     WHERE (SELECT count(*) FROM mine) < least(p_wanted, (
               SELECT count(*) FROM pgbaton.slot AS s
                WHERE s.semaphore = p_semaphore AND NOT s.closed AND (s.holder IS NULL OR s.expires_at <= clock_timestamp())));
END;

-- Claims slots for several requests at once, in their order: each gets all that it wants, or it and those behind it get nothing. With
-- nothing granted, NULL as capacity means that there is no such semaphore. Nobody can stand at a gate here. queue: if the first request
-- gets nothing, the holder becomes the one that looks for a slot, if nobody is, for queue milliseconds; the others are refused then.
--
-- The token is given with the slots' rows locked, so that of two claims of a slot the later has the greater one.
CREATE FUNCTION pgbaton.claim_slots(
    p_semaphore integer, p_gate bigint, p_holder bigint, p_wants integer[], p_ttl_ms integer, p_at_gate boolean, p_queue integer,
    p_look boolean, OUT capacity integer, OUT granted integer, OUT slots integer[], OUT token bigint)
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.refuse('22023', 'a lease is 1 s to 1 h, a turn at most 60 s, a request for 1 to 10000')
     WHERE (p_ttl_ms BETWEEN 1000 AND 3600000 AND p_queue BETWEEN 0 AND 60000 AND cardinality(p_wants) BETWEEN 1 AND 1000
            AND 1 <= ALL (p_wants) AND 10000 >= ALL (p_wants) AND NOT p_at_gate) IS NOT TRUE;
    SELECT pgbaton.settle_semaphore(m.id) FROM pgbaton.semaphore AS m
     WHERE m.id = p_semaphore AND m.surplus > 0 AND pgbaton.may_claim(p_semaphore, p_holder);
    SELECT pgbaton.grasp_slots(p_semaphore, (SELECT sum(w) FROM unnest(p_wants) AS w)) WHERE pgbaton.may_claim(p_semaphore, p_holder);
    SELECT pgbaton.grasp_slots(p_semaphore, (SELECT sum(w) FROM unnest(p_wants) AS w)) WHERE pgbaton.may_claim(p_semaphore, p_holder);
    WITH wanted AS MATERIALIZED (
        SELECT w.i, sum(w.n) OVER (ORDER BY w.i) AS taken FROM unnest(p_wants) WITH ORDINALITY AS w (n, i)),
    free AS MATERIALIZED (
        SELECT s.slot, s.token FROM pgbaton.slot AS s
         WHERE s.semaphore = p_semaphore AND NOT s.closed AND (s.holder IS NULL OR s.expires_at <= clock_timestamp())
           AND (SELECT pgbaton.may_claim(p_semaphore, p_holder))
         LIMIT (SELECT max(w.taken) FROM wanted AS w) FOR UPDATE SKIP LOCKED),
    fits AS MATERIALIZED (
        SELECT count(*)::integer AS requests, coalesce(max(w.taken), 0) AS slots FROM wanted AS w
         WHERE w.taken <= (SELECT count(*) FROM free)),
    picked AS MATERIALIZED (
        SELECT f.slot, f.token FROM free AS f ORDER BY f.slot LIMIT (SELECT t.slots FROM fits AS t)),
    base AS MATERIALIZED (
        SELECT greatest(max(p.token) + 32, pgbaton.clock_token()) AS token FROM picked AS p),
    claimed AS (
        UPDATE pgbaton.slot AS s
           SET holder = p_holder, token = b.token, lease = p_ttl_ms, expires_at = clock_timestamp() + p_ttl_ms * interval '1 ms'
          FROM picked AS p CROSS JOIN base AS b
         WHERE s.semaphore = p_semaphore AND s.slot = p.slot
        RETURNING s.slot),
    queued AS (
        UPDATE pgbaton.semaphore AS m
           SET head = CASE WHEN t.requests = 0 THEN p_holder END,
               head_until = CASE WHEN t.requests = 0 THEN clock_timestamp() + p_queue * interval '1 ms' END
          FROM fits AS t
         WHERE m.id = p_semaphore
           AND CASE WHEN t.requests > 0 THEN m.head = p_holder
                    ELSE p_queue > 0 AND (m.head = p_holder OR m.head_until IS NULL OR m.head_until <= clock_timestamp()) END)
    SELECT m.capacity, t.requests, (SELECT array_agg(c.slot) FROM claimed AS c), CASE WHEN t.requests > 0 THEN b.token END
      FROM pgbaton.semaphore AS m CROSS JOIN fits AS t CROSS JOIN base AS b WHERE m.id = p_semaphore;
END;

-- Frees slots, each only if it is still the holder's by this claim and has not expired, and tells which were, by their place in the
-- arrays. Nobody can be told of it.
CREATE FUNCTION pgbaton.free_slots(
    p_holder bigint, p_semaphores integer[], p_slots integer[], p_tokens bigint[], p_gates bigint[],
    OUT freed integer[], OUT awaited bigint[])
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT s.slot FROM unnest(p_semaphores, p_slots) AS q (semaphore, slot)
      JOIN pgbaton.slot AS s ON s.semaphore = q.semaphore AND s.slot = q.slot
     WHERE s.holder = p_holder
     ORDER BY s.semaphore, s.slot FOR NO KEY UPDATE OF s;
    WITH gone AS (
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
          FROM unnest(p_semaphores, p_slots, p_tokens) WITH ORDINALITY AS f (semaphore, slot, token, place)
         WHERE s.semaphore = f.semaphore AND s.slot = f.slot AND s.holder = p_holder AND s.token = f.token
           AND s.expires_at > clock_timestamp()
        RETURNING f.place)
    SELECT array_agg(g.place::integer), NULL::bigint[] FROM gone AS g;
END;

-- Holds slots for another ttl_ms, and tells which were still held, by their place in the arrays. With others: frees whatever else the
-- holder holds, which are claims whose answers were lost.
CREATE FUNCTION pgbaton.renew_slots(
    p_holder bigint, p_semaphores integer[], p_slots integer[], p_tokens bigint[], p_ttl_ms integer, p_others boolean,
    OUT renewed integer[])
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.refuse('22023', 'a lease is 1 s to 1 h')
     WHERE (p_ttl_ms BETWEEN 1000 AND 3600000 AND cardinality(p_slots) <= 100000) IS NOT TRUE;
    SELECT s.slot FROM pgbaton.slot AS s WHERE s.holder = p_holder ORDER BY s.semaphore, s.slot FOR NO KEY UPDATE;
    UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
     WHERE p_others AND s.holder = p_holder
       AND NOT EXISTS (SELECT 1 FROM unnest(p_semaphores, p_slots, p_tokens) AS f (semaphore, slot, token)
                        WHERE s.semaphore = f.semaphore AND s.slot = f.slot AND s.token = f.token);
    WITH kept AS (
        UPDATE pgbaton.slot AS s SET expires_at = clock_timestamp() + p_ttl_ms * interval '1 ms', lease = p_ttl_ms
          FROM unnest(p_semaphores, p_slots, p_tokens) WITH ORDINALITY AS f (semaphore, slot, token, place)
         WHERE s.semaphore = f.semaphore AND s.slot = f.slot AND s.holder = p_holder AND s.token = f.token
           AND s.expires_at > clock_timestamp()
        RETURNING f.place)
    SELECT array_agg(k.place::integer) FROM kept AS k;
END;

-- How many slots a semaphore has, and how many can be claimed.
CREATE FUNCTION pgbaton.semaphore_state(p_semaphore integer, OUT capacity integer, OUT available integer) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT m.capacity, greatest(0, (
               SELECT count(*) FROM pgbaton.slot AS s
                WHERE s.semaphore = m.id AND (s.holder IS NULL OR s.expires_at <= clock_timestamp())) - m.surplus)::integer
      FROM pgbaton.semaphore AS m WHERE m.id = p_semaphore;
END;

-- Who holds how many slots, each claim by itself.
CREATE FUNCTION pgbaton.semaphore_holders(
    p_semaphore integer, OUT holder bigint, OUT name text, OUT slots integer, OUT token bigint, OUT expires_in_ms bigint)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT s.holder, coalesce(min(h.name), ''), count(*)::integer, s.token,
           greatest(0, extract(epoch FROM min(s.expires_at) - clock_timestamp()) * 1000)::bigint
      FROM pgbaton.slot AS s LEFT JOIN pgbaton.holder AS h ON h.id = s.holder
     WHERE s.semaphore = p_semaphore AND s.holder IS NOT NULL AND s.expires_at > clock_timestamp()
     GROUP BY s.holder, s.token
     ORDER BY s.token;
END;

-- Whether a claim still holds all its slots. If so they cannot be claimed by anybody before the transaction has ended, even if they
-- expire; their holder may still renew and free them.
CREATE FUNCTION pgbaton.holds_slots(p_semaphore integer, p_holder bigint, p_slots integer[], p_token bigint) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    WITH held AS MATERIALIZED (
        SELECT s.slot FROM pgbaton.slot AS s
         WHERE s.semaphore = p_semaphore AND s.slot = ANY (p_slots) AND s.holder = p_holder AND s.token = p_token
           AND s.expires_at > clock_timestamp()
         ORDER BY s.slot FOR KEY SHARE)
    SELECT (SELECT count(*) FROM held) = cardinality(p_slots);
END;

-- There is nothing here to write anew with.
CREATE FUNCTION pgbaton.compact_slots(larger_than bigint) RETURNS boolean
LANGUAGE sql VOLATILE
RETURN false;

--
-- Leaders
--

CREATE TABLE pgbaton.leader (
    name             text        NOT NULL PRIMARY KEY,
    holder           bigint,
    holder_name      text        NOT NULL,
    term             bigint      NOT NULL,
    since            timestamptz NOT NULL,
    resign_requested boolean     NOT NULL DEFAULT false
);

-- Whether the rows of a holder count.
CREATE FUNCTION pgbaton.attends(p_holder bigint) RETURNS boolean
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    SELECT EXISTS (SELECT 1 FROM pgbaton.holder AS h WHERE h.id = p_holder AND h.attends_until > clock_timestamp());
END;

-- Records the terms that a holder leads, and returns those of the names whose leader was asked to resign. To be called again now and
-- then: it says as well that the holder is there. A row with a greater term, or one whose leader has resigned from this term, stays as it is.
CREATE FUNCTION pgbaton.keep_leaders(p_names text[], p_terms bigint[], p_holder bigint, p_holder_name text) RETURNS SETOF text
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.require_holder(p_holder);
    SELECT pgbaton.refuse('22023', 'a name has 1 to 512 bytes, a holder''s up to 512, a term was drawn here, and there are up to 10,000 of them')
     WHERE cardinality(p_names) > 10000 OR octet_length(p_holder_name) > 512
        OR EXISTS (SELECT 1 FROM unnest(p_names, p_terms) AS u (name, term)
                    WHERE (octet_length(u.name) BETWEEN 1 AND 512 AND pgbaton.drawn(u.term)) IS NOT TRUE);
    INSERT INTO pgbaton.holder AS h (id, name, since, attends_until)
    VALUES (p_holder, coalesce(p_holder_name, ''), clock_timestamp(), clock_timestamp() + interval '10 s')
        ON CONFLICT (id) DO UPDATE SET attends_until = excluded.attends_until;
    INSERT INTO pgbaton.leader AS l (name, holder, holder_name, term, since)
    SELECT u.name, p_holder, coalesce(p_holder_name, ''), u.term, clock_timestamp()
      FROM unnest(p_names, p_terms) AS u (name, term) LEFT JOIN pgbaton.leader AS o ON o.name = u.name
     WHERE o.name IS NULL OR o.term < u.term OR (o.term = u.term AND o.holder <> p_holder)
     ORDER BY u.name
        ON CONFLICT (name) DO UPDATE
       SET holder = excluded.holder, holder_name = excluded.holder_name, term = excluded.term,
           since = CASE WHEN l.term = excluded.term THEN l.since ELSE excluded.since END,
           resign_requested = l.term = excluded.term AND l.resign_requested
     WHERE l.term < excluded.term OR (l.term = excluded.term AND l.holder <> excluded.holder);
    WITH old AS MATERIALIZED (
        SELECT l.name FROM pgbaton.leader AS l
         WHERE l.since < clock_timestamp() - interval '30 days' AND NOT pgbaton.attends(l.holder)
         LIMIT 10 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.leader AS l USING old AS o WHERE l.name = o.name;
    SELECT DISTINCT l.name FROM unnest(p_names, p_terms) AS u (name, term) JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
     WHERE l.resign_requested;
END;

-- Says that terms are over.
CREATE FUNCTION pgbaton.strike_leaders(p_names text[], p_terms bigint[]) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT l.name FROM unnest(p_names, p_terms) AS u (name, term) JOIN pgbaton.leader AS l ON l.name = u.name AND l.term = u.term
     ORDER BY l.name FOR NO KEY UPDATE OF l;
    UPDATE pgbaton.leader AS l SET holder = NULL, resign_requested = false
      FROM unnest(p_names, p_terms) AS u (name, term) WHERE l.name = u.name AND l.term = u.term AND l.holder IS NOT NULL;
END;

-- Who leads: one row, or none if nobody does.
CREATE FUNCTION pgbaton.leader_of(p_name text, OUT holder_name text, OUT term bigint, OUT since timestamptz) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT l.holder_name, l.term, l.since FROM pgbaton.leader AS l WHERE l.name = p_name AND pgbaton.attends(l.holder);
END;

-- Asks the leader to resign, and returns the term that is asked to end; NULL if nobody leads.
CREATE FUNCTION pgbaton.request_resign(p_name text) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    WITH asked AS (
        UPDATE pgbaton.leader AS l SET resign_requested = true WHERE l.name = p_name AND pgbaton.attends(l.holder)
        RETURNING l.term)
    SELECT max(a.term) FROM asked AS a;
END;

--
-- Jobs
--

CREATE TABLE pgbaton.last_run (
    resource text        NOT NULL PRIMARY KEY,
    token    bigint      NOT NULL,
    ran_at   timestamptz NOT NULL,
    at_least interval,
    ended_at timestamptz,
    failed   boolean,
    error    text
);

-- How far ahead of the clock a run may have begun that is believed: see migration 11 of the full set.
CREATE FUNCTION pgbaton.run_tolerance(at_least interval) RETURNS interval
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN greatest('1 minute'::interval, at_least / 10);

-- Says whether a job may run: whether its last run, if there was one, began at_least ago. With a token, which the caller's lock on the
-- job has, a run that may begin is recorded, and the commit of that is flushed to this server's disk whatever synchronous_commit says;
-- a token that is older than the last run's records nothing. Without a token it only looks. retry_failed: a last run that has failed is
-- none; one that is not said to have ended has failed. force: the window does not matter. disbelieved: the last run claims to have begun
-- in the future, and is taken for none.
CREATE FUNCTION pgbaton.start_run(
    p_resource text, p_at_least interval, p_token bigint, p_retry_failed boolean, p_force boolean,
    OUT due boolean, OUT last_run timestamptz, OUT next_run timestamptz, OUT disbelieved boolean)
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.pin();
    SELECT pgbaton.refuse('22023', 'a resource has 1 to 512 bytes, a window is above zero and at most 1000 years, and a token was drawn here')
     WHERE (octet_length(p_resource) BETWEEN 1 AND 512 AND p_at_least > interval '0' AND p_at_least <= interval '1000 years'
            AND (p_token IS NULL OR pgbaton.drawn(p_token))) IS NOT TRUE;
    SELECT r.token FROM pgbaton.last_run AS r WHERE r.resource = p_resource AND p_token IS NOT NULL FOR UPDATE;
    WITH now AS MATERIALIZED (
        SELECT clock_timestamp() AS at),
    last AS MATERIALIZED (
        SELECT r.token, r.ran_at, r.failed, coalesce(r.ran_at > n.at + pgbaton.run_tolerance(p_at_least), false) AS disbelieved, n.at
          FROM now AS n LEFT JOIN pgbaton.last_run AS r ON r.resource = p_resource),
    judged AS MATERIALIZED (
        SELECT l.*, l.ran_at IS NULL
               OR ((l.ran_at + p_at_least <= l.at OR l.disbelieved OR coalesce(p_force, false)
                    OR (coalesce(p_retry_failed, false) AND coalesce(l.failed, false)))
                   AND coalesce(p_token, l.token) >= l.token) AS due
          FROM last AS l),
    written AS (
        INSERT INTO pgbaton.last_run AS r (resource, token, ran_at, at_least, failed)
        SELECT p_resource, p_token, j.at, p_at_least, true FROM judged AS j WHERE p_token IS NOT NULL AND j.due
            ON CONFLICT (resource) DO UPDATE
           SET token = excluded.token, ran_at = excluded.ran_at, at_least = excluded.at_least, failed = excluded.failed,
               ended_at = NULL, error = NULL
         WHERE r.token < excluded.token
           AND (r.ran_at + p_at_least <= excluded.ran_at OR r.ran_at > excluded.ran_at + pgbaton.run_tolerance(p_at_least)
                OR coalesce(p_force, false) OR (coalesce(p_retry_failed, false) AND coalesce(r.failed, false)))
        RETURNING r.token)
    SELECT j.due AND (p_token IS NULL OR (SELECT count(*) FROM written) > 0), j.ran_at,
           CASE WHEN NOT j.disbelieved THEN j.ran_at + p_at_least END, j.disbelieved
      FROM judged AS j;
END;

-- Says how a run has ended that was begun with the token. Returns whether it is still the last one.
CREATE FUNCTION pgbaton.end_run(p_resource text, p_token bigint, p_failed boolean, p_error text) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.pin();
    SELECT pgbaton.refuse('22023', 'failed is NULL') WHERE p_failed IS NULL;
    WITH ended AS (
        UPDATE pgbaton.last_run AS r
           SET ended_at = clock_timestamp(), failed = p_failed, error = CASE WHEN p_failed THEN left(p_error, 1000) END
         WHERE r.resource = p_resource AND r.token = p_token
        RETURNING r.token)
    SELECT count(*) > 0 FROM ended;
END;

-- The last run of a job: one row, or none if there never was one.
CREATE FUNCTION pgbaton.look_run(
    p_resource text, OUT last_run timestamptz, OUT ended_at timestamptz, OUT failed boolean, OUT error text, OUT token bigint)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT r.ran_at, r.ended_at, CASE WHEN r.ended_at IS NOT NULL THEN r.failed END, CASE WHEN r.ended_at IS NOT NULL THEN r.error END, r.token
      FROM pgbaton.last_run AS r WHERE r.resource = p_resource;
END;

-- Forgets when a job has run, so that it may at once, and returns whether there was anything to forget.
CREATE FUNCTION pgbaton.forget_run(p_resource text) RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    WITH gone AS (DELETE FROM pgbaton.last_run AS r WHERE r.resource = p_resource RETURNING r.token)
    SELECT count(*) > 0 FROM gone;
END;

--
-- Fences
--

CREATE TABLE pgbaton.fence (
    resource text        NOT NULL PRIMARY KEY,
    token    bigint      NOT NULL,
    seen_at  timestamptz NOT NULL
);

COMMENT ON COLUMN pgbaton.fence.token IS 'the newest exclusive token that was shown; 0: none yet, and shared ones were';

-- Shows a token for a resource. If a newer one has been seen, it fails with PB001 and {"resource": ..., "token": ..., "newest": ...}.
-- If not, newer ones wait in here until the transaction ends: what it writes is committed before anything that a newer holder writes.
-- The token of a shared lock is compared and not recorded; shared ones do not wait for one another, but for the first of a resource.
CREATE FUNCTION pgbaton.fence(p_resource text, p_token bigint, p_shared boolean DEFAULT false) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT pgbaton.refuse('22023', 'a resource has 1 to 512 bytes, and a token is above 0, below 2^53 and not far ahead of the clock')
     WHERE (octet_length(p_resource) BETWEEN 1 AND 512 AND pgbaton.drawn(p_token)) IS NOT TRUE;
    INSERT INTO pgbaton.fence AS f (resource, token, seen_at)
    SELECT p_resource, p_token, clock_timestamp() WHERE p_shared IS NOT TRUE
        ON CONFLICT (resource) DO UPDATE SET token = greatest(f.token, excluded.token), seen_at = excluded.seen_at;
    INSERT INTO pgbaton.fence (resource, token, seen_at)
    SELECT p_resource, 0, clock_timestamp()
     WHERE p_shared AND NOT EXISTS (SELECT 1 FROM pgbaton.fence AS f WHERE f.resource = p_resource)
        ON CONFLICT DO NOTHING;
    SELECT f.token FROM pgbaton.fence AS f WHERE p_shared AND f.resource = p_resource FOR SHARE;
    SELECT pgbaton.refuse('PB001', json_build_object('resource', f.resource, 'token', p_token, 'newest', f.token)::text)
      FROM pgbaton.fence AS f WHERE f.resource = p_resource AND f.token > p_token;
END;
