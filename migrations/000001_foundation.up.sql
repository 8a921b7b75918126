-- The schema that pgbaton's clients, psql users and services in other languages share.
--
-- A role that runs a service needs: USAGE on the schema and USAGE on the sequence pgbaton.token.
-- Everything else goes through functions, which everybody who may use the schema may execute.
--
-- Names in the bodies that are parsed here (BEGIN ATOMIC, RETURN) are qualified and literals typed, so
-- that they mean the same whatever search_path this file is run with: in public an overload such as
-- nextval(text) would otherwise win over nextval(regclass).
--
-- Locks: creates new objects only; waits for nobody.

CREATE SCHEMA pgbaton;

-- What this schema is, for a client that connects: its version, and the oldest client that it still
-- serves. Every migration replaces this function: version is the number of the newest one.
CREATE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 1, 1;
END;

-- The advisory lock key of a name: the first eight bytes of SHA-256('pgbaton:' || name), big-endian.
CREATE FUNCTION pgbaton.key(name text) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ('x'::pg_catalog.text || pg_catalog.encode(pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(
    'pgbaton:'::pg_catalog.text || name, 'UTF8'::pg_catalog.name)), 1, 8), 'hex'::pg_catalog.text))::bit(64)::bigint;

-- The key at which processes queue for a key. A process that waits for key k holds gate(k) while it is
-- first in line.
CREATE FUNCTION pgbaton.gate(key bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN key # 8099550625553935921;

CREATE FUNCTION pgbaton.gate(a integer, b integer) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ((a::bigint << 32) | (b::bigint & 4294967295)) # 8099550625553935922;

-- Fencing tokens. A draw is worth a block of 32 tokens, from the value drawn upwards, so one round trip
-- can serve many grants. CACHE 1: a larger cache would break the order between sessions. The last block
-- ends below 2^53, so that a token survives JSON.
CREATE SEQUENCE pgbaton.token AS bigint
    INCREMENT BY 32 START WITH 32 MINVALUE 32 MAXVALUE 9007199254740960 CACHE 1 NO CYCLE;

-- Says whether the sequence can be trusted. nextval is not crash-safe until its WAL is flushed, and an
-- asynchronous standby may be promoted with an old value. PostgreSQL empties an UNLOGGED table in just
-- these cases. A row that came with a dump, with a copy of the data directory or with CREATE DATABASE ...
-- TEMPLATE does not count either: it names another table, another start of the server or another database. Nor
-- does one in a table that somebody has SET LOGGED: it would survive a crash.
CREATE UNLOGGED TABLE pgbaton.incarnation (
    singleton   boolean     NOT NULL DEFAULT true PRIMARY KEY CHECK (singleton),
    database    oid         NOT NULL,
    relation    oid         NOT NULL,
    started     timestamptz NOT NULL,
    token_floor bigint      NOT NULL
);

COMMENT ON COLUMN pgbaton.incarnation.database IS 'oid of the database that the row was written in';
COMMENT ON COLUMN pgbaton.incarnation.relation IS 'oid of the table that the row was written into';
COMMENT ON COLUMN pgbaton.incarnation.started IS 'start of the server on which the row was written';
COMMENT ON COLUMN pgbaton.incarnation.token_floor IS 'where the repair put the sequence; a lower value was set by hand';

CREATE FUNCTION pgbaton.tokens_trusted() RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pgbaton.incarnation AS i, pgbaton.token AS t
        WHERE i.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
          AND i.relation = (SELECT c.oid FROM pg_catalog.pg_class AS c WHERE c.oid = i.tableoid AND c.relpersistence = 'u'::pg_catalog."char")
          AND i.started = pg_catalog.pg_postmaster_start_time()
          AND t.last_value >= i.token_floor);
END;

-- Moves the sequence above every token that can ever have been handed out, if that is in doubt. Returns
-- whether it did.
--
-- The clock decides: milliseconds since 2020 times 4096 stay ahead of any sequence that is drawn from less than
-- 128,000 times a second, so two repairs at different times cannot meet, from however old a state they start.
-- That holds as long as no repair puts the sequence ahead of the clock. A gap above the sequence's own value
-- would do that in a crash loop, and the tokens would go back when a standby from before it is
-- promoted, or the sequence is lost. So there is a gap only where the clock is of no use, because it was set back and
-- the sequence is ahead of it: 2^20 (32,768 draws), which a crash loop makes up for in a quarter of a second each
-- time, or 2^26 (two million draws) when the clock is 17 minutes behind or more. If it is less than a quarter of a
-- second behind, the repair waits for it.
--
-- Two advisory locks, of the transaction: the first belongs to the session that repairs, the second says that the
-- sequence has been moved. setval does not wait for the commit, so those who come while the transaction of
-- the repair goes on, however long, need not wait for it either: the sequence is right already.
CREATE FUNCTION pgbaton.repair_tokens() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    repairing CONSTANT bigint := 6539763025470766920;
    moved     CONSTANT bigint := 6539763025470766921;
    old_floor bigint;
    known     bigint;
    clock     bigint;
    new_floor bigint;
BEGIN
    IF pgbaton.tokens_trusted() THEN
        RETURN false;
    END IF;
    -- The row may be seen only after the sequence's new value is safe on disk.
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    WHILE NOT pg_try_advisory_xact_lock(repairing) LOOP
        IF EXISTS (SELECT FROM pg_locks AS l
                   WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                     AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
                     AND (l.classid::bigint << 32 | l.objid::bigint) = moved) THEN
            -- This transaction's commit shall flush the other's new value with it: only one with an id does.
            PERFORM pg_current_xact_id();
            RETURN false;
        END IF;
        PERFORM pg_sleep(0.001);
    END LOOP;
    IF pgbaton.tokens_trusted() THEN
        RETURN false; -- another one has just repaired it
    END IF;
    BEGIN
        INSERT INTO pgbaton.incarnation AS i (database, relation, started, token_floor)
        VALUES ((SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()),
                'pgbaton.incarnation'::regclass, pg_postmaster_start_time(), 0)
        ON CONFLICT (singleton) DO UPDATE
            SET database = excluded.database, relation = excluded.relation, started = excluded.started
        RETURNING i.token_floor INTO old_floor;
    EXCEPTION WHEN serialization_failure THEN
        RETURN false; -- repaired after this transaction's snapshot
    END;
    LOOP
        SELECT greatest(t.last_value, old_floor) INTO known FROM pgbaton.token AS t;
        clock := (extract(epoch FROM clock_timestamp() - timestamptz '2020-01-01 00:00:00+00') * 1000)::bigint << 12;
        EXIT WHEN known < clock OR known - clock >= 1 << 20;
        PERFORM pg_sleep(0.001);
    END LOOP;
    new_floor := setval('pgbaton.token', CASE
        WHEN known < clock THEN clock
        WHEN known - clock < 1::bigint << 32 THEN known + (1 << 20)
        ELSE known + (1 << 26)
    END);
    UPDATE pgbaton.incarnation SET token_floor = new_floor;
    PERFORM pg_advisory_xact_lock(moved);
    RETURN true;
END;
$$;

-- A new fencing token, greater than every token handed out before. For a lock of one's own: call it
-- after the lock was granted, in a later statement.
CREATE FUNCTION pgbaton.next_token() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT CASE WHEN pgbaton.repair_tokens() IS NOT NULL
                THEN pg_catalog.nextval('pgbaton.token'::pg_catalog.regclass) END;
END;

-- Waits in the queue of the processes for a key, and takes nothing: 2 = your turn, 1 = first in line but
-- the key is still taken, 0 = not even first in line. After 2 the session holds the gate, after 1 too
-- if keep_gate; after 0 it holds nothing. No wait is longer than wait_ms, and none leaves a line in the
-- server's log if wait_ms is below deadlock_timeout.
--
-- An error from a lock function does not mean "not held": a timeout or cancel can race with the grant.
-- So a failed wait ends with pg_advisory_unlock_all (the session is for waiting only), and the key itself
-- is locked for the transaction, which gives it back in every case. Other errors (a deadlock, a full lock
-- table) are raised, and leave nothing either. What remains is a cancel from outside that
-- arrives after the last block, or while a handler runs: it raises query_canceled, or lock_not_available
-- by the reason of the wait before, and may leave the gate. So after any error: unlock all, or end the session.
CREATE FUNCTION pgbaton.wait_for_turn(
    key bigint, pair boolean, shared boolean, gate bigint,
    at_gate boolean, keep_gate boolean, wait_ms integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    give_up timestamptz := clock_timestamp() + wait_ms * interval '1 ms';
BEGIN
    IF NOT at_gate THEN
        PERFORM set_config('lock_timeout', wait_ms::text, true);
        PERFORM pg_advisory_lock(gate);
    END IF;
    BEGIN
        PERFORM set_config('lock_timeout',
            greatest((extract(epoch FROM give_up - clock_timestamp()) * 1000)::integer, 1)::text, true);
        PERFORM CASE
            WHEN pair AND shared THEN pg_advisory_xact_lock_shared((key >> 32)::integer, ((key << 32) >> 32)::integer)
            WHEN pair THEN pg_advisory_xact_lock((key >> 32)::integer, ((key << 32) >> 32)::integer)
            WHEN shared THEN pg_advisory_xact_lock_shared(key)
            ELSE pg_advisory_xact_lock(key)
        END;
        RETURN 2;
    EXCEPTION WHEN lock_not_available OR query_canceled THEN
        IF keep_gate THEN
            RETURN 1;
        END IF;
        RAISE;
    END;
EXCEPTION
    WHEN lock_not_available OR query_canceled THEN
        PERFORM pg_advisory_unlock_all();
        RETURN 0;
    WHEN OTHERS THEN
        PERFORM pg_advisory_unlock_all();
        RAISE;
END;
$$;

-- Locks a key until the end of the caller's transaction and returns a fencing token; NULL if the key
-- is taken. wait_ms: NULL waits as long as the session's own lock_timeout lets it, 0 does not wait.
-- The caller's lock_timeout is as before afterwards, and a wait that timed out leaves the transaction usable.
CREATE FUNCTION pgbaton.lock_for_transaction(
    key bigint, pair boolean, shared boolean, wait_ms integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    high   integer := key >> 32;
    low    integer := (key << 32) >> 32;
    before text    := current_setting('lock_timeout');
    taken  boolean;
BEGIN
    IF wait_ms = 0 THEN
        taken := CASE
            WHEN pair AND shared THEN pg_try_advisory_xact_lock_shared(high, low)
            WHEN pair THEN pg_try_advisory_xact_lock(high, low)
            WHEN shared THEN pg_try_advisory_xact_lock_shared(key)
            ELSE pg_try_advisory_xact_lock(key)
        END;
        IF NOT taken THEN
            RETURN NULL;
        END IF;
        RETURN pgbaton.next_token();
    END IF;
    -- The block is a subtransaction: when the wait fails, what a race may have left is freed with it.
    BEGIN
        IF wait_ms IS NOT NULL THEN
            PERFORM set_config('lock_timeout', wait_ms::text, true);
        END IF;
        PERFORM CASE
            WHEN pair AND shared THEN pg_advisory_xact_lock_shared(high, low)
            WHEN pair THEN pg_advisory_xact_lock(high, low)
            WHEN shared THEN pg_advisory_xact_lock_shared(key)
            ELSE pg_advisory_xact_lock(key)
        END;
        PERFORM set_config('lock_timeout', before, true);
    EXCEPTION WHEN lock_not_available THEN
        RETURN NULL;
    END;
    RETURN pgbaton.next_token();
END;
$$;

-- The default, said aloud: installations take it back with ALTER DEFAULT PRIVILEGES.
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
