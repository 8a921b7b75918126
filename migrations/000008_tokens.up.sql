-- Tokens that no role can take back: neither by advisory keys, which every role can lock, nor by drawing so fast
-- that a crash loses more than the repair makes up for.
--
-- The invariant: no token is handed out before the server's clock has reached it: milliseconds since 2020 times 4096. So whatever a crash, a
-- standby's lag or an old copy has lost of the sequence, the clock is ahead of it, and a repair may start there. Every
-- draw goes through draw_token, which waits until the clock is there; nobody but the owner needs a right on the sequence.
-- Only a clock that was set back cannot be waited for, see repair_tokens.
--
-- A service needs EXECUTE on draw_token, begin_session and next_token. Roles with USAGE on the sequence can still draw past
-- the clock, by nextval: older clients need it, so it is for the owner to revoke when the last of them is gone.
--
-- No advisory key decides about tokens. Elsewhere in this schema keys that a stranger can lock decide how long somebody
-- waits and never whether something is safe: the key of a holder only makes a dead one look alive, until its slots expire; a gate and
-- the key of a fence that has no row only make others wait.
--
-- Locks: ACCESS EXCLUSIVE on pgbaton.incarnation. It waits for transactions that have called next_token, and
-- those who draw by next_token wait for it.

-- More than one transaction may write a row: the one of a caller whose transaction is long holds up no other.
ALTER TABLE pgbaton.incarnation DROP COLUMN IF EXISTS singleton;

-- A token, the first of 32, that is greater than every token that was handed out before, for a session that has made sure of
-- the sequence (begin_session) and has not lost its server since. For others there is next_token.
--
-- It waits until the clock has reached the block's end. Only those who draw more than 128,000 times a second together
-- get there, and then nobody waits for much longer than the millisecond that a sleep takes: each session has one draw
-- at a time, so a thousand of them are 8 ms ahead.
--
-- A sequence that is a quarter of a second ahead and more is one whose clock was set back. Draws then go on, at
-- the pace of a sleep: at most 1,000 a second and session.
--
-- A function's own setting of search_path costs as much as a lock. So this one has none, and every name, operator and
-- type in it is qualified; such operators have no precedence. The common case has as few expressions as can be: each of
-- them costs about a microsecond in every transaction.
CREATE FUNCTION pgbaton.draw_token() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
AS $$
DECLARE
    drawn CONSTANT pg_catalog.int8 := pg_catalog.nextval('pgbaton.token'::pg_catalog.regclass);
    due   pg_catalog.timestamptz; -- when the clock is there: 10 us more are for the block and for rounding
BEGIN
    IF pg_catalog.to_timestamp((drawn::pg_catalog.float8 OPERATOR(pg_catalog./) 4096000::pg_catalog.float8)
        OPERATOR(pg_catalog.+) 1577836800.00001::pg_catalog.float8) OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() THEN
        RETURN drawn;
    END IF;
    due := pg_catalog.to_timestamp((drawn::pg_catalog.float8 OPERATOR(pg_catalog./) 4096000::pg_catalog.float8)
        OPERATOR(pg_catalog.+) 1577836800.00001::pg_catalog.float8);
    LOOP
        PERFORM pg_catalog.pg_sleep(0.001::pg_catalog.float8);
        IF due OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()
            OR due OPERATOR(pg_catalog.>) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) '0.25 s'::pg_catalog.interval) THEN
            RETURN drawn;
        END IF;
    END LOOP;
END;
$$;

-- Whether the sequence can be trusted. It is the only place that says so: a row that was written after the last crash, by
-- a transaction that has committed or by this one, in this table, database and run of the server; and no row says that
-- the sequence has been further.
CREATE OR REPLACE FUNCTION pgbaton.tokens_trusted() RETURNS boolean
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM pgbaton.incarnation AS i
        WHERE i.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
          AND i.relation = (SELECT c.oid FROM pg_catalog.pg_class AS c WHERE c.oid = i.tableoid AND c.relpersistence = 'u'::pg_catalog."char")
          AND i.started = pg_catalog.pg_postmaster_start_time())
    AND NOT EXISTS (
        SELECT FROM pgbaton.incarnation AS i, pgbaton.token AS t WHERE i.token_floor > t.last_value);
END;

-- Makes sure of the sequence: moves it above every token that can ever have been handed out, if that is in doubt, and
-- writes the row that tokens_trusted looks for. Returns whether it moved the sequence.
--
-- Where to. To the clock, which is ahead of all tokens (above). Never further: a gap ahead of the clock adds up in a crash
-- loop, and the tokens would go back when a standby from before it is promoted. Only a clock that was set back, so that
-- the sequence is ahead of it, is of no use; then there is a gap of 2^26 above the sequence's own value (two million
-- draws, or 16 s of the clock). It covers what a crash can lose: draws whose WAL was not flushed. The WAL
-- writer flushes within three times wal_writer_delay, 0.6 s by default, and a record covers 32 draws.
-- In 0.6 s at draw_token's pace where the clock is behind, 1,000 a second and session, 1,000 sessions lose 600,000 draws;
-- before it was set back, a sequence that lagged behind the clock can give out 3 million a second, 1.8 million. If the clock
-- is less than a quarter of a second behind, the repair waits for it.
--
-- One at a time moves it, under a lock on the table that nobody without rights on it can take, and nobody can keep from
-- the owner: PREPARE takes locks up to ROW EXCLUSIVE without any right, which do not conflict with SHARE UPDATE
-- EXCLUSIVE. (VACUUM and ANALYZE by the database's owner make it wait.) The lock is gone with the inner block, which always
-- fails: setval and nextval are not undone. So a repair in a long transaction holds up nobody: the next one repairs again, and commits.
--
-- The others may draw meanwhile, so moving must not put the sequence back. Nothing is moved if the sequence is
-- ahead of the start of this transaction: the crash was before it, so somebody has moved it since, and that is safe, whichever role it was
-- and whether or not that commits. The sequence is set if it is behind the start of the server: then nobody has moved or drawn in
-- this run; or 2^26 behind the clock: to draw as many takes two thirds of a second. If it is nearer, the role that has moved
-- it gets a quarter of a second to commit, and then it is led to the clock by nextval, which cannot put it back.
--
-- The row may be seen only after the sequence's new value is safe on disk, so this transaction's commit flushes it: it
-- writes WAL of the sequence, also where another has moved it, for which 33 draws are enough. (To have an id is not:
-- without WAL of its own a commit flushes nothing.)
CREATE OR REPLACE FUNCTION pgbaton.repair_tokens() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    year20 CONSTANT timestamptz := '2020-01-01 00:00:00+00';
    began  CONSTANT bigint := extract(epoch FROM transaction_timestamp() - year20) * 4096000;
    booted CONSTANT bigint := extract(epoch FROM pg_postmaster_start_time() - year20) * 4096000;
    gap    CONSTANT bigint := 1 << 26;
    moved  boolean;
    newest bigint; -- of the sequence
    known  bigint; -- of the sequence and the rows
    clock  bigint;
    give_up timestamptz;
BEGIN
    IF pgbaton.tokens_trusted() THEN
        RETURN false;
    END IF;
    IF current_setting('synchronous_commit') IN ('off', 'local') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    BEGIN
        PERFORM set_config('lock_timeout', '0', true);
        LOCK TABLE pgbaton.incarnation IN SHARE UPDATE EXCLUSIVE MODE;
        SELECT t.last_value, greatest(t.last_value, (SELECT max(i.token_floor) FROM pgbaton.incarnation AS i))
          INTO newest, known FROM pgbaton.token AS t;
        LOOP
            clock := extract(epoch FROM clock_timestamp() - year20) * 4096000;
            EXIT WHEN known < clock OR known - clock >= 1 << 20;
            PERFORM pg_sleep(0.001);
        END LOOP;
        IF pgbaton.tokens_trusted() THEN
            NULL;
        ELSIF known < clock AND newest = known AND newest >= began THEN
            PERFORM nextval('pgbaton.token') FROM generate_series(1, 33);
            moved := false;
        ELSIF known < clock AND (newest < booted OR clock - newest >= gap) THEN
            PERFORM setval('pgbaton.token', clock);
            moved := true;
        ELSE
            give_up := clock_timestamp() + interval '0.25 s';
            WHILE NOT pgbaton.tokens_trusted() AND clock_timestamp() < give_up LOOP
                PERFORM pg_sleep(0.001);
            END LOOP;
            IF NOT pgbaton.tokens_trusted() THEN
                IF known < clock THEN
                    PERFORM nextval('pgbaton.token') FROM generate_series(1, greatest(33, (clock - newest) / 32 + 1));
                ELSE
                    PERFORM setval('pgbaton.token', known + gap);
                END IF;
                moved := true;
            END IF;
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'PB000';
    EXCEPTION WHEN SQLSTATE 'PB000' THEN
        IF moved IS NULL THEN
            RETURN false; -- another one has repaired it
        END IF;
    END;
    INSERT INTO pgbaton.incarnation (database, relation, started, token_floor)
    SELECT d.oid, 'pgbaton.incarnation'::regclass, pg_postmaster_start_time(), t.last_value
      FROM pg_database AS d, pgbaton.token AS t WHERE d.datname = current_database();
    BEGIN
        WITH old AS MATERIALIZED (
            SELECT i.ctid FROM pgbaton.incarnation AS i
            WHERE i.started <> pg_postmaster_start_time() OR i.relation <> 'pgbaton.incarnation'::regclass
               OR i.database <> (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
            FOR UPDATE SKIP LOCKED)
        DELETE FROM pgbaton.incarnation AS i USING old WHERE i.ctid = old.ctid;
    EXCEPTION WHEN serialization_failure THEN
        NULL; -- deleted after this transaction's snapshot
    END;
    RETURN moved;
END;
$$;

-- A new fencing token, greater than every token handed out before. For a lock of one's own: call it
-- after the lock was granted, in a later statement.
CREATE OR REPLACE FUNCTION pgbaton.next_token() RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER
BEGIN ATOMIC
    SELECT CASE WHEN pgbaton.repair_tokens() IS NOT NULL THEN pgbaton.draw_token() END;
END;

-- Makes sure of the sequence for a session that will draw by draw_token, and returns its value: later draws
-- are above last_drawn, 0 if there was none. repaired: it had been used, and was moved. In a statement of its own: the session
-- may draw when that has committed.
CREATE FUNCTION pgbaton.begin_session(OUT repaired boolean, OUT last_drawn bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    used CONSTANT boolean := (SELECT t.is_called FROM pgbaton.token AS t);
BEGIN
    repaired := pgbaton.repair_tokens() AND used;
    SELECT CASE WHEN t.is_called THEN t.last_value ELSE 0 END INTO last_drawn FROM pgbaton.token AS t;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 8, 1;
END;

GRANT EXECUTE ON FUNCTION pgbaton.draw_token(), pgbaton.begin_session() TO PUBLIC;
