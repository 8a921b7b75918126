-- Leases: locks that are rows, for ground on which a session cannot hold advisory locks, such as a pooler in transaction
-- mode; and which of the two ways of locking, the engine, this database has.
--
-- When is a lease that is held anybody's?
--   * Its holder's session has ended: at once.
--   * Its holder has no session (an id below zero): when it has expired by the clock. So a step of the server's clock ahead, by more
--     than what is left of the lease, gives it to another while its holder believes in it for up to a third of the lease.
--   * Its holder's session lives: not by the clock alone. Who finds it expired notes that, and it is anybody's a lease later,
--     if it was not renewed meanwhile.
-- A lease that ends later than its own length from now was made before the clock was set back. It is cut to its length by
-- whoever finds it: a holder that lives renews before that is over.
--
-- Locks: ACCESS EXCLUSIVE on pgbaton.holder for a moment; it waits for transactions that have used it.

-- One row a key, which is kept for some time when nobody holds the key. Every change is an UPDATE in place (HOT).
CREATE TABLE pgbaton.lease (
    key        bigint  NOT NULL,
    pair       boolean NOT NULL,
    last       bigint  NOT NULL DEFAULT 0,
    holder     bigint,
    token      bigint,
    expires_at timestamptz,
    length     integer,
    overdue    boolean NOT NULL DEFAULT false,
    shared     boolean NOT NULL DEFAULT false,
    next       bigint,
    next_since timestamptz,
    next_until timestamptz,
    name       text,
    PRIMARY KEY (key, pair)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

COMMENT ON COLUMN pgbaton.lease.last IS 'the newest token of the key; a new one is greater, and not below milliseconds since 2020 times 4096';
COMMENT ON COLUMN pgbaton.lease.name IS 'of the key, for people, as its last holder called it; NULL if that had none';
COMMENT ON COLUMN pgbaton.lease.holder IS 'who holds the key exclusively, with the token';
COMMENT ON COLUMN pgbaton.lease.length IS 'milliseconds from grant or renewal to expires_at';
COMMENT ON COLUMN pgbaton.lease.overdue IS 'somebody found it expired while its holder''s session lived, and gave it another length';
COMMENT ON COLUMN pgbaton.lease.shared IS 'there may be rows of lease_share';
COMMENT ON COLUMN pgbaton.lease.next IS 'the holder whose turn it is when the key is free: of those that wait the one that has waited longest';

-- Who holds a key in shared mode. A change of these rows is made with the key's row of pgbaton.lease locked, or is a deletion.
CREATE TABLE pgbaton.lease_share (
    key        bigint      NOT NULL,
    pair       boolean     NOT NULL,
    holder     bigint      NOT NULL,
    token      bigint      NOT NULL,
    expires_at timestamptz NOT NULL,
    length     integer     NOT NULL,
    overdue    boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (key, pair, holder)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The newest token of all keys that were forgotten, so that tokens go on rising when the clock was set back.
CREATE TABLE pgbaton.lease_floor (
    singleton boolean NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    last      bigint  NOT NULL
);

-- By which engine locks exclude in this database: session (advisory locks), lease, or both, on the way from one to the
-- other: then a lock is a lease and an advisory lock. No row: nobody has taken a lock yet.
CREATE TABLE pgbaton.lock_engine (
    singleton   boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    engine      text        NOT NULL CHECK (engine IN ('session', 'lease', 'both')),
    former      text,
    recorded_by text        NOT NULL,
    recorded_at timestamptz NOT NULL
);

COMMENT ON COLUMN pgbaton.lock_engine.former IS 'what was recorded before; under both there may be clients of that one alone, and none of the other';

-- Connections that take locks, and by which engine: what must be over before the other one may go alone.
CREATE TABLE pgbaton.lock_client (
    id         bigint      NOT NULL PRIMARY KEY,
    engine     text        NOT NULL CHECK (engine IN ('session', 'lease', 'both')),
    name       text        NOT NULL,
    pid        integer,
    joined_at  timestamptz NOT NULL,
    expires_at timestamptz
) WITH (fillfactor = 50);

COMMENT ON COLUMN pgbaton.lock_client.pid IS 'of its session; NULL: behind a pooler it has none of its own, and renews the row';

-- Refuses callers that do not act for a holder. One without a session, of which there is no row, becomes the caller's. Such a
-- holder goes on believing in its leases and slots when the server crashes, or another one takes its place: they must be on
-- disk by then, and on a synchronous standby if there is one.
CREATE OR REPLACE FUNCTION pgbaton.require_holder(holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regrole;
BEGIN
    IF holder > 0 THEN
        IF pg_try_advisory_xact_lock(holder) THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'pgbaton: holder % is another session''s', holder USING ERRCODE = 'insufficient_privilege',
            HINT = 'A session acts for the holder that it became by pgbaton.enlist.';
    END IF;
    IF (holder < 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton: 0 and NULL are no holders' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Behind a pooler nothing is set on the session: nobody shall wait for a table for ever.
    IF current_setting('lock_timeout') = '0' THEN
        PERFORM set_config('lock_timeout', '500ms', true);
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    SELECT h.service INTO owner FROM pgbaton.holder AS h WHERE h.id = require_holder.holder;
    IF NOT FOUND THEN
        INSERT INTO pgbaton.holder (id, name, since, service) VALUES (holder, '', clock_timestamp(), pgbaton.service())
            ON CONFLICT DO NOTHING;
        SELECT h.service INTO owner FROM pgbaton.holder AS h WHERE h.id = require_holder.holder; -- another may have been faster
    END IF;
    IF NOT pgbaton.serves(owner) THEN
        RAISE EXCEPTION 'pgbaton: holder % is of the service %', holder, owner USING ERRCODE = 'insufficient_privilege',
            HINT = 'Each client makes a holder of its own by pgbaton.enlist.';
    END IF;
END;
$$;

-- Gives leases of a key another length if the clock says that they are expired and their holders' sessions live, and cuts
-- what ends too late.
CREATE FUNCTION pgbaton.correct_lease(key bigint, pair boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE pgbaton.lease AS l
       SET overdue = l.overdue OR l.expires_at <= clock_timestamp(), expires_at = clock_timestamp() + l.length * interval '1 ms'
     WHERE l.key = correct_lease.key AND l.pair = correct_lease.pair AND l.holder IS NOT NULL
       AND ((l.expires_at <= clock_timestamp() AND l.holder > 0 AND NOT l.overdue)
            OR l.expires_at > clock_timestamp() + l.length * interval '1 ms' + interval '1 s');
    UPDATE pgbaton.lease_share AS s
       SET overdue = s.overdue OR s.expires_at <= clock_timestamp(), expires_at = clock_timestamp() + s.length * interval '1 ms'
     WHERE s.key = correct_lease.key AND s.pair = correct_lease.pair
       AND ((s.expires_at <= clock_timestamp() AND s.holder > 0 AND NOT s.overdue)
            OR s.expires_at > clock_timestamp() + s.length * interval '1 ms' + interval '1 s');
END;
$$;

-- A key for a holder, exclusively: the first of as many tokens as asked for, or NULL. The common case, a key that is free and
-- that nobody waits for, is one UPDATE; acquire_leases does the rest.
CREATE FUNCTION pgbaton.acquire_lease(
    holder bigint, length integer, key bigint, pair boolean, want integer, tokens integer, name text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    clock CONSTANT bigint := (extract(epoch FROM clock_timestamp()) * 1000 - 1577836800000)::bigint << 12;
    got   bigint;
BEGIN
    PERFORM pgbaton.require_holder(holder);
    IF (length BETWEEN 1000 AND 3600000 AND tokens BETWEEN 1 AND 64 AND want BETWEEN 0 AND 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.acquire_lease: a lease is 1 s to 1 h, and has 1 to 64 tokens' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE pgbaton.lease AS l
       SET holder = acquire_lease.holder, token = greatest(l.last + 1, clock), last = greatest(l.last + 1, clock) + tokens - 1,
           expires_at = clock_timestamp() + acquire_lease.length * interval '1 ms', length = acquire_lease.length, overdue = false,
           name = nullif(left(acquire_lease.name, 512), '')
     WHERE l.key = acquire_lease.key AND l.pair = acquire_lease.pair AND l.holder IS NULL AND NOT l.shared AND l.next IS NULL
    RETURNING l.token INTO got;
    IF NOT FOUND THEN
        SELECT a.token INTO got FROM pgbaton.acquire_leases(
            holder, length, ARRAY[key], ARRAY[pair], ARRAY[false], ARRAY[want], ARRAY[tokens], ARRAY[-1], false, ARRAY[name]) AS a;
    ELSIF holder < 0 THEN
        PERFORM pgbaton.require_leases();
    END IF;
    RETURN got;
END;
$$;

-- Takes, for a holder, keys that are free, draws tokens for keys that it holds, and looks for others that wait. Each request
-- has its place in the arrays: key and space of keys; shared or not; what it wants; how many tokens; and for how many
-- milliseconds the holder has waited for the key, -1 if it does not go on waiting; and, if there are names, that of the key for people.
-- What it wants is a number:
--
--   0 the key, also before those that wait      2 tokens for a key that it holds      4 to give up its turn
--   1 the key, after those that wait            3 to know whether others wait
--
-- with_lock takes the advisory lock as well. Returns a row for each request that was granted: with the first token and how many
-- were drawn, or, for 3, if nobody else waits. The rows of all keys are locked before the first request is served, in one order,
-- so that calls do not end in deadlocks. A call that fails keeps the advisory locks that it has taken: end the session.
CREATE FUNCTION pgbaton.acquire_leases(
    holder bigint, length integer, keys bigint[], pairs boolean[], shared boolean[], wants integer[], tokens integer[],
    waited integer[], with_lock boolean, names text[] DEFAULT NULL)
RETURNS TABLE (request integer, token bigint, drawn integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me    CONSTANT bigint := holder;
    mine  CONSTANT integer := length;
    dead  bigint[];
    r     record;
    turn  boolean; -- nobody goes before this holder
    busy  boolean;
    count integer := 0;
    others      boolean; -- share the key
    former_key  bigint;  -- of the request before
    former_pair boolean;
BEGIN
    PERFORM pgbaton.require_holder(holder);
    IF (length BETWEEN 1000 AND 3600000 AND cardinality(keys) <= 100000
        AND cardinality(keys) = ALL (ARRAY[cardinality(pairs), cardinality(shared), cardinality(wants), cardinality(tokens), cardinality(waited)])
        AND coalesce(cardinality(names) = cardinality(keys), names IS NULL)
        AND 1 <= ALL (tokens) AND 64 >= ALL (tokens) AND 0 <= ALL (wants) AND 4 >= ALL (wants) AND -1 <= ALL (waited)) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.acquire_leases: a lease is 1 s to 1 h, and has 1 to 64 tokens; each request has its place in every array'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO pgbaton.lease AS n (key, pair, last)
    SELECT q.key, q.pair, coalesce((SELECT f.last FROM pgbaton.lease_floor AS f), 0) FROM unnest(keys, pairs) AS q (key, pair)
     WHERE NOT EXISTS (SELECT FROM pgbaton.lease AS l WHERE l.key = q.key AND l.pair = q.pair)
     ORDER BY q.key, q.pair
        ON CONFLICT DO NOTHING;
    IF EXISTS (SELECT FROM unnest(acquire_leases.waited) AS w WHERE w >= 0) THEN
        dead := pgbaton.dead_holders(keys, pairs);
    END IF;
    IF EXISTS (SELECT FROM unnest(acquire_leases.waited) AS w WHERE w < 0) THEN
        PERFORM FROM unnest(keys, pairs, acquire_leases.waited) AS q (key, pair, waited)
           JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
          WHERE q.waited < 0 ORDER BY l.key, l.pair
            FOR NO KEY UPDATE OF l;
    END IF;
    FOR r IN
        SELECT x.*, count(*) OVER () AS rows FROM ( -- all are locked before the first is returned
        SELECT q.n, q.key, q.pair, q.name, q.share, q.want, q.tokens, q.waited, l.last, l.holder, l.expires_at, l.length, l.overdue, l.shared,
               l.next, l.next_since, l.next_until
          FROM unnest(keys, pairs, acquire_leases.shared, wants, acquire_leases.tokens, acquire_leases.waited, names) WITH ORDINALITY
                   AS q (key, pair, share, want, tokens, waited, name, n)
          JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
               -- Whoever waits, and finds the key held and the turn noted, leaves the row alone: it is only looked at.
         WHERE NOT coalesce(q.waited >= 0 AND l.holder <> me AND l.holder <> ALL (dead)
                    AND l.expires_at BETWEEN clock_timestamp() AND clock_timestamp() + l.length * interval '1 ms' + interval '1 s'
                    AND CASE WHEN l.next = me THEN l.next_until > clock_timestamp() + interval '600 ms'
                             ELSE l.next_until BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 min' AND l.next <> ALL (dead)
                                  AND l.next_since <= clock_timestamp() - q.waited * interval '1 ms' + interval '100 ms' END, false)
         ORDER BY l.key, l.pair, q.n
           FOR NO KEY UPDATE OF l SKIP LOCKED) AS x -- a waiter comes again
         ORDER BY x.key, x.pair, x.n
    LOOP
        IF r.key = former_key AND r.pair = former_pair THEN -- that may have changed the row
            SELECT l.last, l.holder, l.expires_at, l.length, l.overdue, l.shared, l.next, l.next_since, l.next_until
              INTO r.last, r.holder, r.expires_at, r.length, r.overdue, r.shared, r.next, r.next_since, r.next_until
              FROM pgbaton.lease AS l WHERE l.key = r.key AND l.pair = r.pair;
        END IF;
        former_key := r.key;
        former_pair := r.pair;
        IF r.waited < 0 THEN
            count := count + 1;
        END IF;
        request := r.n;
        IF dead IS NULL AND (r.holder > 0 OR r.next > 0 OR r.shared) THEN
            dead := pgbaton.dead_holders(keys, pairs);
        END IF;
        turn := coalesce(r.next = me OR r.next_until NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 min'
                         OR r.next = ANY (dead), r.next IS NULL);
        IF r.want = 4 THEN
            UPDATE pgbaton.lease AS l SET next = NULL, next_since = NULL, next_until = NULL
             WHERE l.key = r.key AND l.pair = r.pair AND l.next = me;
            CONTINUE;
        ELSIF r.want = 3 THEN
            IF turn THEN
                token := 0;
                drawn := 0;
                RETURN NEXT;
            END IF;
            CONTINUE;
        ELSIF r.want = 2 THEN
            IF r.holder = me OR EXISTS (SELECT FROM pgbaton.lease_share AS s
                                         WHERE s.key = r.key AND s.pair = r.pair AND s.holder = me) THEN
                SELECT t.first, t.drawn INTO token, drawn FROM pgbaton.lease_tokens(r.last, r.tokens, with_lock) AS t;
                UPDATE pgbaton.lease AS l SET last = acquire_leases.token + drawn - 1 WHERE l.key = r.key AND l.pair = r.pair;
                RETURN NEXT;
            END IF;
            CONTINUE;
        END IF;
        IF r.shared OR r.expires_at > clock_timestamp() + r.length * interval '1 ms' + interval '1 s'
            OR (r.holder > 0 AND r.expires_at <= clock_timestamp()) THEN
            PERFORM pgbaton.correct_lease(r.key, r.pair);
        END IF;
        others := false;
        IF r.shared THEN
            DELETE FROM pgbaton.lease_share AS s
             WHERE s.key = r.key AND s.pair = r.pair
               AND (s.holder = ANY (dead) OR ((s.holder < 0 OR s.overdue) AND s.expires_at <= clock_timestamp()));
            others := EXISTS (SELECT FROM pgbaton.lease_share AS s WHERE s.key = r.key AND s.pair = r.pair AND s.holder <> me);
        END IF;
        busy := coalesce(r.holder <> me AND NOT coalesce(r.holder = ANY (dead), false)
                         AND NOT ((r.holder < 0 OR r.overdue) AND r.expires_at <= clock_timestamp()), false)
            OR (others AND NOT r.share);
        IF NOT busy AND (turn OR r.want = 0) AND (NOT with_lock OR pgbaton.try_key(r.key, r.pair, r.share)) THEN
            IF with_lock THEN
                SELECT t.first, t.drawn INTO token, drawn FROM pgbaton.lease_tokens(r.last, r.tokens, true) AS t;
            ELSE
                token := greatest(r.last + 1, (extract(epoch FROM clock_timestamp()) * 1000 - 1577836800000)::bigint << 12);
                drawn := r.tokens;
            END IF;
            UPDATE pgbaton.lease AS l
               SET last = acquire_leases.token + drawn - 1, holder = CASE WHEN NOT r.share THEN me END,
                   token = CASE WHEN NOT r.share THEN acquire_leases.token END,
                   expires_at = CASE WHEN NOT r.share THEN clock_timestamp() + mine * interval '1 ms' END,
                   length = CASE WHEN NOT r.share THEN mine END, overdue = false,
                   shared = r.share, name = nullif(left(r.name, 512), ''), next = CASE WHEN NOT turn THEN l.next END, next_since = CASE WHEN NOT turn THEN l.next_since END,
                   next_until = CASE WHEN NOT turn THEN l.next_until END -- the turn of one that was passed is still to come
             WHERE l.key = r.key AND l.pair = r.pair;
            IF r.share THEN
                INSERT INTO pgbaton.lease_share AS s (key, pair, holder, token, expires_at, length)
                VALUES (r.key, r.pair, me, acquire_leases.token, clock_timestamp() + mine * interval '1 ms', mine)
                ON CONFLICT ON CONSTRAINT lease_share_pkey DO UPDATE
                    SET token = excluded.token, expires_at = excluded.expires_at, length = excluded.length, overdue = false;
            ELSIF r.shared THEN
                DELETE FROM pgbaton.lease_share AS s WHERE s.key = r.key AND s.pair = r.pair; -- this holder's
            END IF;
            RETURN NEXT;
        ELSIF r.waited >= 0 AND (CASE WHEN r.next = me THEN r.next_until NOT BETWEEN clock_timestamp() + interval '600 ms' AND clock_timestamp() + interval '1 min'
                                      ELSE turn OR r.next_since > clock_timestamp() - r.waited * interval '1 ms' + interval '100 ms' END) THEN
            -- The turn is the one's that has waited longest. A waiter says that it goes on before its turn runs out.
            UPDATE pgbaton.lease AS l
               SET next = me, next_since = clock_timestamp() - r.waited * interval '1 ms', next_until = clock_timestamp() + interval '1 s'
             WHERE l.key = r.key AND l.pair = r.pair;
        END IF;
    END LOOP;
    IF count < (SELECT count(*) FROM unnest(acquire_leases.waited) AS w WHERE w < 0) THEN
        RAISE EXCEPTION 'pgbaton.acquire_leases: a key was forgotten meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
    IF me < 0 THEN
        PERFORM pgbaton.require_leases();
    END IF;
END;
$$;

-- Undoes what was taken or renewed if leases exclude nobody any longer. Behind a pooler a statement may be late: it may come to the
-- server when the client that sent it does not count any longer, and the engine has changed. After the rows were written, since
-- pgbaton.change_engine waits for those that write them.
CREATE FUNCTION pgbaton.require_leases() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM FROM pgbaton.lock_engine FOR SHARE; -- fails if it has changed since this snapshot
    END IF;
    IF EXISTS (SELECT FROM pgbaton.lock_engine AS e WHERE e.engine = 'session') THEN
        RAISE EXCEPTION 'locks of this database are of the engine "session", and no longer leases'
            USING ERRCODE = 'PB002', HINT = 'Follow the record (Config.Engine), or change it: pgbaton.change_engine.';
    END IF;
END;
$$;

-- The holders of keys, and those whose turn it is, whose sessions have ended. Each is looked at once.
CREATE FUNCTION pgbaton.dead_holders(keys bigint[], pairs boolean[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(
        SELECT h.holder FROM (
            SELECT DISTINCT x.holder
              FROM unnest(keys, pairs) AS q (key, pair)
              JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
             CROSS JOIN LATERAL (
                SELECT l.holder UNION ALL SELECT l.next
                 UNION ALL SELECT s.holder FROM pgbaton.lease_share AS s WHERE l.shared AND s.key = l.key AND s.pair = l.pair) AS x (holder)
             WHERE x.holder > 0 OFFSET 0) AS h
         WHERE NOT pgbaton.present(h.holder));
END;
$$;

-- New tokens for a key whose newest is known: the first, and how many there are. Where a session holds the advisory lock as well they
-- come from the sequence, so that they are greater than all that sessions have had, unless leases have had greater ones: as long as
-- there are clients of leases alone there are none of sessions alone, and before those come pgbaton.change_engine moves the sequence.
CREATE FUNCTION pgbaton.lease_tokens(last bigint, wanted integer, with_lock boolean, OUT first bigint, OUT drawn integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF with_lock THEN
        drawn := least(wanted, 32);
        first := greatest(last + 1, pgbaton.next_token());
    ELSE
        drawn := wanted;
        first := greatest(last + 1, (extract(epoch FROM clock_timestamp()) * 1000 - 1577836800000)::bigint << 12);
    END IF;
END;
$$;

-- Moves the sequence of tokens above a token and the 64 behind it, which leases may be given meanwhile, and to the clock if that
-- is further. Others draw meanwhile, so it must not be put back: as in repair_tokens it is set only if it is 2^26 behind, and
-- else led there by nextval; and the lock on the table, by which one at a time does that, is gone with the block, which always fails.
CREATE FUNCTION pgbaton.raise_tokens(above bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    newest bigint;
    goal   bigint;
BEGIN
    PERFORM pgbaton.repair_tokens();
    BEGIN
        LOCK TABLE pgbaton.incarnation IN SHARE UPDATE EXCLUSIVE MODE;
        SELECT t.last_value INTO newest FROM pgbaton.token AS t;
        goal := greatest((above / 32 + 3) * 32, (extract(epoch FROM clock_timestamp()) * 1000 - 1577836800000)::bigint << 12);
        IF goal - newest >= 1 << 26 THEN
            PERFORM setval('pgbaton.token', goal);
        ELSIF goal > newest THEN
            PERFORM nextval('pgbaton.token') FROM generate_series(1, (goal - newest) / 32 + 1);
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'PB000';
    EXCEPTION WHEN SQLSTATE 'PB000' THEN
        NULL;
    END;
END;
$$;

CREATE FUNCTION pgbaton.try_key(key bigint, pair boolean, shared boolean) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN pair AND shared THEN pg_try_advisory_lock_shared((key >> 32)::integer, ((key << 32) >> 32)::integer)
                WHEN pair THEN pg_try_advisory_lock((key >> 32)::integer, ((key << 32) >> 32)::integer)
                WHEN shared THEN pg_try_advisory_lock_shared(key)
                ELSE pg_try_advisory_lock(key) END;
$$;

CREATE FUNCTION pgbaton.free_key(key bigint, pair boolean, shared boolean) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN pair AND shared THEN pg_advisory_unlock_shared((key >> 32)::integer, ((key << 32) >> 32)::integer)
                WHEN pair THEN pg_advisory_unlock((key >> 32)::integer, ((key << 32) >> 32)::integer)
                WHEN shared THEN pg_advisory_unlock_shared(key)
                ELSE pg_advisory_unlock(key) END;
$$;

-- Tells the one whose turn it is that a key may be free, if it listens: it has a session.
CREATE FUNCTION pgbaton.call_next(key bigint, pair boolean, next bigint, next_until timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF next > 0 AND next_until > clock_timestamp() THEN
        PERFORM pg_notify('pgbaton_lease', concat_ws('/', next, key, pair::integer));
    END IF;
END;
$$;

-- Locks the rows of keys, in one order. A transaction that calls more than one of the functions that give back and take leases calls
-- it first, for all their keys: else two such transactions may end in a deadlock.
CREATE FUNCTION pgbaton.lock_leases(keys bigint[], pairs boolean[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF current_setting('lock_timeout') = '0' THEN -- as in require_holder
        PERFORM set_config('lock_timeout', '500ms', true);
    END IF;
    INSERT INTO pgbaton.lease AS n (key, pair, last) -- in the same order, before anything is locked
    SELECT q.key, q.pair, coalesce((SELECT f.last FROM pgbaton.lease_floor AS f), 0) FROM unnest(keys, pairs) AS q (key, pair)
     WHERE NOT EXISTS (SELECT FROM pgbaton.lease AS l WHERE l.key = q.key AND l.pair = q.pair)
     ORDER BY q.key, q.pair
        ON CONFLICT DO NOTHING;
    PERFORM FROM unnest(keys, pairs) AS q (key, pair) JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
      ORDER BY l.key, l.pair
        FOR NO KEY UPDATE OF l;
END;
$$;

-- Gives an exclusive lease back: the common case, in one UPDATE. False: it was not the holder's.
CREATE FUNCTION pgbaton.release_lease(holder bigint, key bigint, pair boolean, token bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    follower bigint;
    until    timestamptz;
BEGIN
    PERFORM pgbaton.require_holder(holder);
    UPDATE pgbaton.lease AS l SET holder = NULL, token = NULL, expires_at = NULL, length = NULL
     WHERE l.key = release_lease.key AND l.pair = release_lease.pair AND l.holder = release_lease.holder AND l.token = release_lease.token
    RETURNING l.next, l.next_until INTO follower, until;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF follower > 0 THEN
        PERFORM pgbaton.call_next(key, pair, follower, until);
    END IF;
    RETURN true;
END;
$$;

-- Gives leases back, each if it is the holder's and has the token. Returns the places of those in the arrays.
CREATE FUNCTION pgbaton.release_leases(
    holder bigint, keys bigint[], pairs boolean[], shared boolean[], tokens bigint[], with_lock boolean)
RETURNS TABLE (request integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me CONSTANT bigint := holder;
    r  record;
BEGIN
    PERFORM pgbaton.require_holder(holder);
    FOR r IN
        SELECT q.n, q.key, q.pair, q.shared AS share, q.token, l.next, l.next_until
          FROM unnest(keys, pairs, release_leases.shared, tokens) WITH ORDINALITY AS q (key, pair, shared, token, n)
          JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
         ORDER BY l.key, l.pair, q.n
           FOR NO KEY UPDATE OF l
    LOOP
        IF r.share THEN
            DELETE FROM pgbaton.lease_share AS s WHERE s.key = r.key AND s.pair = r.pair AND s.holder = me AND s.token = r.token;
        ELSE
            UPDATE pgbaton.lease AS l SET holder = NULL, token = NULL, expires_at = NULL, length = NULL
             WHERE l.key = r.key AND l.pair = r.pair AND l.holder = me AND l.token = r.token;
        END IF;
        CONTINUE WHEN NOT FOUND;
        IF with_lock THEN
            PERFORM pgbaton.free_key(r.key, r.pair, r.share);
        END IF;
        IF r.next > 0 THEN
            PERFORM pgbaton.call_next(r.key, r.pair, r.next, r.next_until);
        END IF;
        request := r.n;
        RETURN NEXT;
    END LOOP;
END;
$$;

-- Renews leases, each if it is the holder's, or was of one that the client was before, and has the token. Returns the
-- places of those in the arrays. With only_these everything else of the former holders is given back: an answer that was lost may have
-- granted it. (What the holder itself has besides may be a grant whose answer is on its way.)
--
-- A lease of a session whose row another transaction has is the session's until somebody has found it expired, and a lease after
-- that: it counts as renewed, so that nobody makes a holder lose its leases by a transaction that it leaves open. One of a holder
-- without a session is not renewed then, and ends when it was to end: its place is returned below zero.
CREATE FUNCTION pgbaton.renew_leases(
    holder bigint, length integer, keys bigint[], pairs boolean[], shared boolean[], tokens bigint[], former bigint[], only_these boolean)
RETURNS TABLE (request integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me     CONSTANT bigint := holder;
    span   CONSTANT interval := length * interval '1 ms';
    ours   CONSTANT bigint[] := former || holder;
    other  bigint;
    places bigint[];
    patience text;
BEGIN
    FOREACH other IN ARRAY ours LOOP
        PERFORM pgbaton.require_holder(other);
    END LOOP;
    IF (length BETWEEN 1000 AND 3600000 AND cardinality(keys) <= 100000) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.renew_leases: a lease is 1 s to 1 h' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    patience := current_setting('lock_timeout');
    IF only_these THEN -- in one order, also with what is given back
        PERFORM FROM pgbaton.lease AS l
          WHERE (l.key, l.pair) IN (SELECT q.key, q.pair FROM unnest(keys, pairs) AS q (key, pair)) OR l.holder = ANY (former)
             OR (l.shared AND EXISTS (SELECT FROM pgbaton.lease_share AS s WHERE s.key = l.key AND s.pair = l.pair AND s.holder = ANY (former)))
          ORDER BY l.key, l.pair
            FOR NO KEY UPDATE;
    ELSIF me < 0 THEN
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            PERFORM FROM unnest(keys, pairs) AS q (key, pair) JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
              ORDER BY l.key, l.pair
                FOR NO KEY UPDATE OF l;
            PERFORM set_config('lock_timeout', patience, true);
        EXCEPTION WHEN lock_not_available THEN
            NULL; -- the others are renewed; with the block its setting is undone
        END;
    END IF;
    WITH found AS MATERIALIZED (
        SELECT q.n, q.key, q.pair, q.share, q.token
          FROM unnest(keys, pairs, renew_leases.shared, tokens) WITH ORDINALITY AS q (key, pair, share, token, n)
          JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
           FOR NO KEY UPDATE OF l SKIP LOCKED),
    alone AS (
        UPDATE pgbaton.lease AS l
           SET holder = me, expires_at = clock_timestamp() + span, length = renew_leases.length, overdue = false
          FROM found AS f
         WHERE NOT f.share AND l.key = f.key AND l.pair = f.pair AND l.holder = ANY (ours) AND l.token = f.token
        RETURNING f.n),
    together AS (
        UPDATE pgbaton.lease_share AS s
           SET holder = me, expires_at = clock_timestamp() + span, length = renew_leases.length, overdue = false
          FROM found AS f
         WHERE f.share AND s.key = f.key AND s.pair = f.pair AND s.holder = ANY (ours) AND s.token = f.token
        RETURNING f.n)
    SELECT coalesce(array_agg(k.n), '{}') INTO places FROM (SELECT a.n FROM alone AS a UNION ALL SELECT t.n FROM together AS t) AS k;
    RETURN QUERY SELECT p::integer FROM unnest(places) AS p;
    IF cardinality(places) < cardinality(keys) THEN
        RETURN QUERY
        SELECT (CASE WHEN me > 0 THEN q.n ELSE -q.n END)::integer
          FROM unnest(keys, pairs, renew_leases.shared, tokens) WITH ORDINALITY AS q (key, pair, share, token, n)
          JOIN pgbaton.lease AS l ON l.key = q.key AND l.pair = q.pair
          LEFT JOIN pgbaton.lease_share AS s ON q.share AND s.key = q.key AND s.pair = q.pair AND s.holder = ANY (ours)
         WHERE q.n NOT IN (SELECT p FROM unnest(places) AS p)
           AND CASE WHEN q.share THEN s.token = q.token AND s.expires_at > clock_timestamp() AND NOT s.overdue AND s.length >= renew_leases.length
                    ELSE l.holder = ANY (ours) AND l.token = q.token AND l.expires_at > clock_timestamp() AND NOT l.overdue
                         AND l.length >= renew_leases.length END;
    END IF;
    IF only_these THEN
        PERFORM pgbaton.free_leases(former, keys, pairs);
    END IF;
    UPDATE pgbaton.lock_client AS c SET expires_at = clock_timestamp() + span WHERE c.id = me AND c.pid IS NULL;
    IF FOUND AND me < 0 THEN
        PERFORM pgbaton.require_leases();
    ELSIF me < 0 THEN
        RAISE EXCEPTION 'pgbaton.renew_leases: holder % is no client', me USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END;
$$;

-- Gives back all that holders have, but the keys that are named.
CREATE FUNCTION pgbaton.free_leases(holders bigint[], keys bigint[], pairs boolean[]) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT l.key, l.pair, l.next, l.next_until FROM pgbaton.lease AS l
         WHERE (l.holder = ANY (holders) OR l.shared AND EXISTS (
                    SELECT FROM pgbaton.lease_share AS s WHERE s.key = l.key AND s.pair = l.pair AND s.holder = ANY (holders)))
           AND NOT EXISTS (SELECT FROM unnest(keys, pairs) AS q (key, pair) WHERE q.key = l.key AND q.pair = l.pair)
         ORDER BY l.key, l.pair
           FOR NO KEY UPDATE OF l
    LOOP
        UPDATE pgbaton.lease AS l SET holder = NULL, token = NULL, expires_at = NULL, length = NULL
         WHERE l.key = r.key AND l.pair = r.pair AND l.holder = ANY (holders);
        DELETE FROM pgbaton.lease_share AS s WHERE s.key = r.key AND s.pair = r.pair AND s.holder = ANY (holders);
        IF r.next > 0 THEN
            PERFORM pgbaton.call_next(r.key, r.pair, r.next, r.next_until);
        END IF;
    END LOOP;
END;
$$;

-- Ends a holder of leases: what it holds is free, and it takes no more locks.
CREATE FUNCTION pgbaton.leave_leases(holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.require_holder(holder);
    PERFORM pgbaton.free_leases(ARRAY[holder], '{}', '{}');
    DELETE FROM pgbaton.lock_client AS c WHERE c.id = leave_leases.holder;
    DELETE FROM pgbaton.holder AS h WHERE h.id = leave_leases.holder;
END;
$$;

-- Tidies up, a thousand rows at most: keys that nobody has taken for an hour, or that were left behind an hour ago by holders that
-- are gone, and connections that are gone. A token that is given later is greater than those of a row that was forgotten, also when
-- the clock is set back: the newest of them is kept. A call looks at what all clients have, and each client makes one a minute. Where
-- there are more than twenty, chance decides whether a call looks: about twenty a minute do, as in forget_holders.
CREATE FUNCTION pgbaton.tend_leases() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    hour     CONSTANT interval := interval '1 hour';
    long_ago CONSTANT bigint := (extract(epoch FROM clock_timestamp() - hour) * 1000 - 1577836800000)::bigint << 12;
BEGIN
    IF random() * (SELECT count(*) FROM pgbaton.lock_client) >= 20 THEN
        RETURN;
    END IF;
    INSERT INTO pgbaton.lease_floor (last) SELECT 0 WHERE NOT EXISTS (SELECT FROM pgbaton.lease_floor) ON CONFLICT DO NOTHING;
    PERFORM FROM pgbaton.lease_floor FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        WITH old AS MATERIALIZED (
            SELECT l.key, l.pair FROM pgbaton.lease AS l
             WHERE l.last < long_ago AND coalesce(l.next_until < clock_timestamp(), true)
               AND (l.holder IS NULL
                    OR (l.expires_at < clock_timestamp() - hour AND (l.holder < 0 OR NOT pgbaton.present(l.holder))))
               AND NOT (l.shared AND EXISTS (
                   SELECT FROM pgbaton.lease_share AS s
                    WHERE s.key = l.key AND s.pair = l.pair
                      AND (s.expires_at >= clock_timestamp() - hour OR (s.holder > 0 AND pgbaton.present(s.holder)))))
             LIMIT 1000 FOR UPDATE SKIP LOCKED),
        shares AS (DELETE FROM pgbaton.lease_share AS s USING old AS o WHERE s.key = o.key AND s.pair = o.pair),
        gone AS (DELETE FROM pgbaton.lease AS l USING old AS o WHERE l.key = o.key AND l.pair = o.pair RETURNING l.last)
        UPDATE pgbaton.lease_floor AS f SET last = g.last
          FROM (SELECT max(n.last) AS last FROM gone AS n) AS g WHERE g.last > f.last;
    END IF;
    WITH old AS MATERIALIZED (
        SELECT c.id FROM pgbaton.lock_client AS c WHERE NOT pgbaton.client_lives(c) LIMIT 1000 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.lock_client AS c USING old AS o WHERE c.id = o.id;
END;
$$;

-- Whether a connection that takes locks may be there. That of somebody else may only look as if it were: its process id is
-- used again, and when that began is not shown to everybody.
CREATE FUNCTION pgbaton.client_lives(client pgbaton.lock_client) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN client.pid IS NULL THEN client.expires_at > clock_timestamp()
                ELSE EXISTS (SELECT FROM pg_stat_get_activity(client.pid) AS a
                              WHERE coalesce(a.backend_start <= client.joined_at, true)) END;
$$;

-- The engine that is recorded; no row if there is none.
CREATE FUNCTION pgbaton.engine_record() RETURNS TABLE (engine text, recorded_by text, recorded_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.engine, e.recorded_by, e.recorded_at FROM pgbaton.lock_engine AS e;
$$;

-- What a connection calls before it takes locks by an engine, in the same transaction or before. It records the engine if
-- none is recorded, and fails with SQLSTATE PB002 if another one is. Where that is both, clients of the engine before it come back when
-- they have lost a connection. length is NULL for a session of its own, which is one client; else the id is that of its holder, and it is
-- for how many milliseconds the connection counts, unless renew_leases goes on. The row of the record is locked, so that the engine
-- does not change before others can see this connection.
CREATE FUNCTION pgbaton.join_engine(id bigint, wanted text, name text, length integer) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known   record;
    session CONSTANT integer := CASE WHEN length IS NULL THEN pg_backend_pid() END;
BEGIN
    IF length IS NOT NULL THEN
        PERFORM pgbaton.require_holder(id);
        IF length NOT BETWEEN 1000 AND 3600000 OR wanted = 'both' THEN
            RAISE EXCEPTION 'pgbaton.join_engine: a lease is 1 s to 1 h, and "both" needs a session' USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END IF;
    DELETE FROM pgbaton.lock_client AS c WHERE c.pid = session AND c.id <> join_engine.id; -- it was one before, through a pooler
    IF random() < 0.05 THEN
        DELETE FROM pgbaton.lock_client AS c WHERE c.id IN (
            SELECT d.id FROM pgbaton.lock_client AS d WHERE d.id <> join_engine.id AND NOT pgbaton.client_lives(d) FOR UPDATE SKIP LOCKED);
    END IF;
    INSERT INTO pgbaton.lock_client AS c (id, engine, name, pid, joined_at, expires_at)
    VALUES (join_engine.id, wanted, left(join_engine.name, 512), session, clock_timestamp(), clock_timestamp() + length * interval '1 ms')
    ON CONFLICT ON CONSTRAINT lock_client_pkey DO UPDATE SET joined_at = excluded.joined_at, expires_at = excluded.expires_at
     WHERE c.engine = excluded.engine AND c.pid IS NOT DISTINCT FROM excluded.pid;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'pgbaton.join_engine: the id is taken' USING ERRCODE = 'unique_violation';
    END IF;
    LOOP
        SELECT e.engine, e.former, e.recorded_by, e.recorded_at INTO known FROM pgbaton.lock_engine AS e FOR SHARE;
        EXIT WHEN FOUND;
        INSERT INTO pgbaton.lock_engine AS e (engine, recorded_by, recorded_at)
        VALUES (wanted, left(join_engine.name, 512), clock_timestamp()) ON CONFLICT DO NOTHING;
    END LOOP;
    IF known.engine <> wanted AND wanted <> 'both' AND (known.engine = 'both' AND known.former = wanted) IS NOT TRUE THEN
        RAISE EXCEPTION 'locks of this database are of the engine "%", recorded by % at %, and not "%"',
            known.engine, known.recorded_by, known.recorded_at, wanted
            USING ERRCODE = 'PB002', HINT = 'Follow the record (Config.Engine), or change it: pgbaton.change_engine.';
    END IF;
END;
$$;

-- Changes the engine, for operators: from session or lease to both, and from both to one of them. Under both, a lock is a lease and
-- an advisory lock, so it excludes the locks of either engine. From both on to one engine goes only when no connection is there that
-- takes locks by the other engine alone, nor anything that such a one holds; the error says what. Clients of both may go on. Returns
-- the engine that was recorded before, NULL if none was.
CREATE FUNCTION pgbaton.change_engine(wanted text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me       CONSTANT text := pgbaton.session_role()::regrole::text;
    patience CONSTANT text := current_setting('lock_timeout');
    before text;
    others text;
    held   bigint;
    ahead  numeric; -- seconds, the sequence of the clock
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.change_engine');
    IF (wanted IN ('session', 'lease', 'both')) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.change_engine: there are the engines session and lease, and both on the way between them'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'pgbaton.change_engine: a transaction that is "%" may not see clients that have just come', current_setting('transaction_isolation')
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Begin it with ISOLATION LEVEL READ COMMITTED.';
    END IF;
    LOOP
        SELECT e.engine INTO before FROM pgbaton.lock_engine AS e FOR UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO pgbaton.lock_engine AS e (engine, recorded_by, recorded_at) VALUES (wanted, me, clock_timestamp()) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END LOOP;
    IF before = wanted THEN
        RETURN before;
    ELSIF before <> 'both' AND wanted <> 'both' THEN
        RAISE EXCEPTION 'pgbaton.change_engine: from % to % the way leads over both', before, wanted
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF wanted <> 'both' THEN
        SELECT string_agg(format('%s (%s)', c.name, coalesce('server process ' || c.pid, 'behind a pooler')), ', ' ORDER BY c.name, c.id)
          INTO others FROM pgbaton.lock_client AS c
         WHERE c.engine NOT IN (wanted, 'both') AND pgbaton.client_lives(c);
        IF others IS NOT NULL THEN
            RAISE EXCEPTION 'pgbaton.change_engine: clients are there that take locks by the other engine alone: %', left(others, 1000)
                USING ERRCODE = 'object_in_use', HINT = 'Restart them: they follow the record, which is both.';
        END IF;
    END IF;
    IF wanted = 'session' THEN
        -- What is under way is seen below, and what comes later sees the new record.
        PERFORM set_config('lock_timeout', '1s', true); -- others wait behind this call
        LOCK TABLE pgbaton.lease, pgbaton.lease_share IN SHARE MODE;
        PERFORM set_config('lock_timeout', patience, true);
        SELECT count(*) INTO held FROM (
            SELECT FROM pgbaton.lease AS l WHERE l.holder < 0 AND l.expires_at > clock_timestamp()
             UNION ALL SELECT FROM pgbaton.lease_share AS s WHERE s.holder < 0 AND s.expires_at > clock_timestamp()) AS h;
        IF held > 0 THEN
            RAISE EXCEPTION 'pgbaton.change_engine: % leases have not expired of clients without a session, which are gone', held
                USING ERRCODE = 'object_in_use', HINT = 'Try again in a moment.';
        END IF;
    ELSIF wanted = 'lease' THEN
        SELECT t.last_value / 4096000.0 - (extract(epoch FROM clock_timestamp()) - 1577836800) INTO ahead FROM pgbaton.token AS t;
        IF ahead > 1 THEN
            RAISE EXCEPTION 'pgbaton.change_engine: the clock was set back, and tokens of sessions are % s ahead of it, where those of leases begin', ahead::bigint
                USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Try again when the clock is there.';
        END IF;
        PERFORM pg_sleep(greatest(ahead + 0.001, 0)::double precision); -- those of leases begin with a whole millisecond
    END IF;
    IF wanted <> 'lease' THEN
        PERFORM pgbaton.raise_tokens(greatest((SELECT max(l.last) FROM pgbaton.lease AS l), (SELECT f.last FROM pgbaton.lease_floor AS f)));
    END IF;
    UPDATE pgbaton.lock_engine AS e SET engine = wanted, former = before, recorded_by = me, recorded_at = clock_timestamp();
    RETURN before;
END;
$$;

-- Leaders, jobs and waits of clients without a session. Such a holder attends to its rows: it says again and again that it is there.

ALTER TABLE pgbaton.holder ADD COLUMN attends_until timestamptz;

COMMENT ON COLUMN pgbaton.holder.attends_until IS 'of one without a session: until then its rows of leader and wait count';

-- Whether the rows of a holder count, of leader and wait.
CREATE FUNCTION pgbaton.attends(holder bigint) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN holder > 0 THEN pgbaton.present(holder)
                ELSE EXISTS (SELECT FROM pgbaton.holder AS h WHERE h.id = attends.holder AND h.attends_until > clock_timestamp()) END;
$$;

-- Refuses a holder that is not this session, or not the caller's.
CREATE OR REPLACE FUNCTION pgbaton.require_session(call text, holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF holder < 0 THEN
        PERFORM pgbaton.require_holder(holder);
        UPDATE pgbaton.holder AS h SET attends_until = clock_timestamp() + interval '10 s'
         WHERE h.id = require_session.holder AND coalesce(h.attends_until < clock_timestamp() + interval '5 s', true);
        RETURN;
    END IF;
    IF (holder > 0 AND pg_try_advisory_xact_lock(holder)) IS NOT TRUE THEN
        RAISE EXCEPTION '%: the holder % is not this session', call, coalesce(holder::text, 'NULL')
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'A session becomes a holder by pgbaton.enlist.';
    END IF;
END;
$$;

-- Whether a token can have been given out in this database: it is not ahead of the sequence or, where there are leases, of
-- the clock by more than it may have been set back.
CREATE OR REPLACE FUNCTION pgbaton.drawn(token bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN token BETWEEN 1 AND (SELECT t.last_value + 31 FROM pgbaton.token AS t)
        OR (token BETWEEN 1 AND (extract(epoch FROM clock_timestamp()) - 1577836800 + 3600)::bigint * 4096000
            AND EXISTS (SELECT FROM pgbaton.lock_engine AS e WHERE e.engine <> 'session'));
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.prune_leaders(older_than interval, most bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    WITH old AS MATERIALIZED (
        SELECT l.name, l.service FROM pgbaton.leader AS l
         WHERE l.since < clock_timestamp() - older_than AND pgbaton.attends(l.holder) IS NOT TRUE
         LIMIT most FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.leader AS l USING old WHERE l.name = old.name AND l.service = old.service;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.leader_of(name text, OUT holder_name text, OUT term bigint, OUT since timestamptz)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT l.holder_name, l.term, l.since FROM pgbaton.leader AS l
     WHERE l.name = leader_of.name AND pgbaton.acts_for(l.service) AND pgbaton.attends(l.holder)
     ORDER BY l.service = pgbaton.service() DESC NULLS LAST, l.term DESC LIMIT 1;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.request_resign(name text) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    asked bigint;
BEGIN
    WITH asked_to AS (
        UPDATE pgbaton.leader AS l SET resign_requested = true
         WHERE l.name = request_resign.name AND pgbaton.acts_for(l.service) AND pgbaton.attends(l.holder)
        RETURNING l.term)
    SELECT max(a.term) INTO asked FROM asked_to AS a;
    RETURN asked;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.prune_waits(most_waits bigint, most_looks bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    waits bigint;
    looks bigint;
BEGIN
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM pgbaton.wait AS w) AS h
         WHERE NOT pgbaton.attends(h.holder)),
    old AS MATERIALIZED (
        SELECT w.id FROM pgbaton.wait AS w
         WHERE w.holder IN (SELECT d.holder FROM dead AS d) LIMIT most_waits FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait AS w USING old WHERE w.id = old.id;
    GET DIAGNOSTICS waits = ROW_COUNT;
    WITH old AS MATERIALIZED (
        SELECT l.holder FROM pgbaton.wait_look AS l
         WHERE NOT pgbaton.attends(l.holder) LIMIT most_looks FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.wait_look AS l USING old WHERE l.holder = old.holder;
    GET DIAGNOSTICS looks = ROW_COUNT;
    RETURN waits + looks;
END;
$$;

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
        SELECT h.holder FROM (SELECT DISTINCT w.holder FROM own AS w) AS h WHERE pgbaton.attends(h.holder))
    SELECT w.id, w.holder, coalesce(l.looks, 0), extract(epoch FROM clock_timestamp() - w.since)::double precision,
           w.name, w.key, w.pair, w.shared, w.held_keys, w.held_pairs, w.held_shared
    FROM own AS w JOIN alive AS a ON a.holder = w.holder
    LEFT JOIN pgbaton.wait_look AS l ON l.holder = w.holder AND l.service IS NOT DISTINCT FROM w.service;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.function_sets() RETURNS TABLE (name text, set text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name, s.set
      FROM (VALUES
        ('everybody', '{schema_version, key, gate, function_sets, session_role, service, acts_for, operates, bump_version,
            fence_guard, engine_record}'::text[]),
        ('service', '{server_identity, tokens_trusted, repair_tokens, next_token, draw_token, begin_session, wait_for_turn,
            wait_for_turns, lock_for_transaction, fence, enlist, retire, tend, open_semaphore, claim_slots, free_slots,
            renew_slots, resize_semaphore, semaphore_state, semaphore_holders, holds_slots, compact_slots, keep_leaders,
            strike_leaders, leader_of, request_resign, begin_run, start_run, end_run, look_run, forget_run, publish_waits,
            withdraw_waits, waits, join_engine, acquire_lease, acquire_leases, release_lease, release_leases, renew_leases,
            leave_leases, tend_leases, lock_leases}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign, change_engine}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits, correct_lease, dead_holders, lease_tokens, raise_tokens,
            try_key, free_key, call_next, free_leases, require_leases, client_lives, attends}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 14, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
