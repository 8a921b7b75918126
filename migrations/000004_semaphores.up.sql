-- Semaphores: one row for each slot, claimed for a time by the database's clock.
--
-- Locks: creates tables and functions and replaces another; waits for nobody.

-- Who holds rows of this schema: a session of a client. Its id is positive, and an advisory lock of the session
-- says that it lives; or negative, for a client behind a pooler, of which only the clock tells.
CREATE TABLE pgbaton.holder (
    id    bigint      PRIMARY KEY,
    name  text        NOT NULL,
    since timestamptz NOT NULL
);

COMMENT ON COLUMN pgbaton.holder.name IS 'of the client, for people';

-- Whether the session of a holder lives. True, too, when only the clock can tell.
CREATE FUNCTION pgbaton.present(holder bigint) RETURNS boolean
LANGUAGE sql VOLATILE STRICT SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN holder < 0 THEN true
                WHEN current_setting('pgbaton.holder', true) = holder::text THEN true -- one's own lock does not conflict
                ELSE NOT pg_try_advisory_xact_lock_shared(holder) END;
$$;

CREATE TABLE pgbaton.semaphore (
    id         integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        COLLATE pg_catalog."C" NOT NULL UNIQUE,
    gate       bigint      NOT NULL,
    capacity   integer     NOT NULL CHECK (capacity BETWEEN 1 AND 10000),
    surplus    integer     NOT NULL DEFAULT 0 CHECK (surplus >= 0),
    head       bigint,
    head_until timestamptz,
    gate_until timestamptz
) WITH (fillfactor = 50);

COMMENT ON COLUMN pgbaton.semaphore.gate IS 'advisory lock key: the process that looks for a slot holds it, the others stand there';
COMMENT ON COLUMN pgbaton.semaphore.surplus IS 'slots to be removed, since the capacity was lowered while they were held; until then no slot is claimed';
COMMENT ON COLUMN pgbaton.semaphore.head IS 'the holder that looks for a slot where no session can stand at the gate';
COMMENT ON COLUMN pgbaton.semaphore.gate_until IS 'until then the turn after the head''s is that of who stands at the gate';

-- One row a slot. Every claim, renewal and release is an UPDATE in place (HOT): no index but the key, and room on
-- each page.
CREATE TABLE pgbaton.slot (
    semaphore  integer NOT NULL REFERENCES pgbaton.semaphore ON DELETE CASCADE,
    slot       integer NOT NULL,
    holder     bigint,
    token      bigint,
    expires_at timestamptz,
    closed     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (semaphore, slot)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

COMMENT ON COLUMN pgbaton.slot.holder IS 'NULL: free';
COMMENT ON COLUMN pgbaton.slot.token IS 'the first of the 32 fencing tokens of the claim: permits handed over within the holder have later ones';
COMMENT ON COLUMN pgbaton.slot.closed IS 'not to be claimed: the semaphore has a surplus';
COMMENT ON COLUMN pgbaton.slot.expires_at IS 'by the database''s clock; from then on anybody may claim the slot';

-- Makes the session a holder, and forgets dead ones. An id below zero is one without a session of its own.
CREATE FUNCTION pgbaton.enlist(id bigint, name text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO pgbaton.holder AS h VALUES (enlist.id, enlist.name, clock_timestamp())
    ON CONFLICT ON CONSTRAINT holder_pkey DO UPDATE SET since = excluded.since;
    IF enlist.id > 0 THEN
        IF NOT pg_try_advisory_lock(enlist.id) THEN
            RAISE EXCEPTION 'pgbaton.enlist: the id is taken' USING ERRCODE = 'unique_violation';
        END IF;
        PERFORM set_config('pgbaton.holder', enlist.id::text, false);
    END IF;
    WITH old AS MATERIALIZED (
        SELECT h.id FROM pgbaton.holder AS h
        WHERE CASE WHEN h.id > 0 THEN h.since < clock_timestamp() - interval '1 minute' AND NOT pgbaton.present(h.id)
                   ELSE h.since < clock_timestamp() - interval '30 days' END
          AND NOT EXISTS (SELECT FROM pgbaton.slot AS s WHERE s.holder = h.id)
        LIMIT 100 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.holder AS h USING old WHERE h.id = old.id;
END;
$$;

-- Makes the semaphore if there is none of the name and a capacity is given, and tells its id and its capacity,
-- which may be another. Without a row: there is none.
CREATE FUNCTION pgbaton.open_semaphore(name text, wanted integer, OUT id integer, OUT capacity integer) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made integer;
BEGIN
    IF wanted IS NOT NULL AND NOT EXISTS (SELECT FROM pgbaton.semaphore AS m WHERE m.name = open_semaphore.name) THEN
        INSERT INTO pgbaton.semaphore AS m (name, gate, capacity)
        VALUES (open_semaphore.name, pgbaton.key('pgbaton/semaphore/' || open_semaphore.name), wanted)
        ON CONFLICT DO NOTHING
        RETURNING m.id INTO made;
        INSERT INTO pgbaton.slot AS s (semaphore, slot)
        SELECT made, n FROM generate_series(1, wanted) AS n WHERE made IS NOT NULL;
    END IF;
    RETURN QUERY SELECT m.id, m.capacity FROM pgbaton.semaphore AS m WHERE m.name = open_semaphore.name;
END;
$$;

-- Removes slots that are more than the capacity, as far as they are free, and returns how many remain. While
-- any do, all slots are closed: the flag is in the row that a claim locks, so no claim can miss it.
CREATE FUNCTION pgbaton.settle_semaphore(semaphore integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    excess  integer;
    removed integer;
BEGIN
    SELECT m.surplus INTO excess FROM pgbaton.semaphore AS m WHERE m.id = settle_semaphore.semaphore FOR NO KEY UPDATE;
    IF excess > 0 THEN
        WITH free AS MATERIALIZED (
            SELECT s.slot FROM pgbaton.slot AS s
            WHERE s.semaphore = settle_semaphore.semaphore
              AND (s.holder IS NULL OR s.expires_at <= clock_timestamp() OR NOT pgbaton.present(s.holder))
            LIMIT excess FOR UPDATE SKIP LOCKED)
        DELETE FROM pgbaton.slot AS s USING free
        WHERE s.semaphore = settle_semaphore.semaphore AND s.slot = free.slot;
        GET DIAGNOSTICS removed = ROW_COUNT;
        excess := excess - removed;
        UPDATE pgbaton.semaphore AS m SET surplus = excess WHERE m.id = settle_semaphore.semaphore;
    END IF;
    UPDATE pgbaton.slot AS s SET closed = excess > 0
     WHERE s.semaphore = settle_semaphore.semaphore AND s.closed <> (excess > 0);
    RETURN excess;
END;
$$;

-- Claims slots for several requests at once, in their order: each gets all that it wants, or it and those behind
-- it get nothing. With nothing granted, NULL as capacity means that there is no such semaphore.
--
-- at_gate: the caller's process holds the gate. Who does not is refused while anybody holds it, so that nobody
-- passes the waiters. queue: for callers whose sessions cannot wait at the gate: if the first request gets
-- nothing, the holder becomes the one that looks for a slot, if nobody is, for queue milliseconds, and is then
-- not refused; after it the process at the gate has a turn. look: make sure of the token sequence, as a session must
-- that may have outlived a crash.
--
-- The token is drawn with the slot's row locked, so that of two claims of a slot the later has the greater one.
--
-- A function's own setting of search_path costs as much as the claim. So this one, and free_slots, have none, and look
-- first whether the session's is the one that they need, with names and an operator that mean the same under any;
-- else they call themselves through a function that has it. Before that only the types of the variables are looked
-- up, which are qualified: without, a domain of the caller's would be taken, and its checks run.
CREATE FUNCTION pgbaton.claim_slots(
    semaphore integer, gate bigint, holder bigint, wants integer[], ttl_ms integer, at_gate boolean, queue integer, look boolean,
    OUT capacity integer, OUT granted integer, OUT slots integer[], OUT token bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
AS $$
DECLARE
    m       pg_catalog.record;
    slot    pg_catalog.int4;
    is_head pg_catalog.bool;
    may     pg_catalog.bool;
BEGIN
    IF pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.<>) 'pg_catalog, pg_temp'::pg_catalog.text THEN
        SELECT c.capacity, c.granted, c.slots, c.token INTO capacity, granted, slots, token
          FROM pgbaton.claim_slots_anywhere(semaphore, gate, holder, wants, ttl_ms, at_gate, queue, look) AS c;
        RETURN;
    END IF;
    -- The common case, in one statement. What a subquery locks it locks once if it is a scalar.
    IF wants = '{1}' AND NOT look AND (at_gate OR pg_try_advisory_xact_lock_shared(gate)) THEN
        UPDATE pgbaton.slot AS s
           SET holder = claim_slots.holder, token = nextval('pgbaton.token'::regclass),
               expires_at = clock_timestamp() + ttl_ms * interval '1 ms'
         WHERE s.semaphore = claim_slots.semaphore AND s.slot = (
               SELECT f.slot FROM pgbaton.slot AS f
                WHERE f.semaphore = claim_slots.semaphore AND NOT f.closed
                  AND (f.holder IS NULL OR f.expires_at <= clock_timestamp())
                  AND NOT EXISTS (SELECT FROM pgbaton.semaphore AS h
                                   WHERE h.id = claim_slots.semaphore AND h.head_until > clock_timestamp())
                LIMIT 1 FOR UPDATE OF f SKIP LOCKED)
        RETURNING s.slot, s.token INTO slot, token;
        IF FOUND THEN
            granted := 1;
            slots := ARRAY[slot];
            IF at_gate THEN
                UPDATE pgbaton.semaphore AS s SET gate_until = NULL
                 WHERE s.id = claim_slots.semaphore AND s.gate_until IS NOT NULL;
            END IF;
            RETURN;
        END IF;
    END IF;
    granted := 0;
    SELECT s.capacity, s.surplus, s.head, s.head_until INTO m FROM pgbaton.semaphore AS s WHERE s.id = claim_slots.semaphore;
    capacity := m.capacity;
    IF capacity IS NULL THEN
        RETURN;
    END IF;
    is_head := coalesce(m.head = claim_slots.holder AND m.head_until > clock_timestamp(), false);
    may := CASE WHEN is_head THEN true
                WHEN m.head_until > clock_timestamp() THEN false
                WHEN at_gate THEN true
                ELSE pg_try_advisory_xact_lock_shared(gate) END;
    IF may AND (m.surplus = 0 OR pgbaton.settle_semaphore(claim_slots.semaphore) = 0) THEN
        slots := pgbaton.pick_slots(claim_slots.semaphore, wants);
        IF slots IS NOT NULL THEN
            SELECT count(*) INTO granted
              FROM (SELECT sum(w.n) OVER (ORDER BY w.i) AS taken FROM unnest(wants) WITH ORDINALITY AS w(n, i)) AS p
             WHERE p.taken <= cardinality(slots);
            token := CASE WHEN look THEN pgbaton.next_token() ELSE nextval('pgbaton.token'::regclass) END;
            UPDATE pgbaton.slot AS s
               SET holder = claim_slots.holder, token = claim_slots.token,
                   expires_at = clock_timestamp() + ttl_ms * interval '1 ms'
             WHERE s.semaphore = claim_slots.semaphore AND s.slot = ANY (claim_slots.slots);
        END IF;
    END IF;
    -- Heads that wait at the gate and heads that cannot take turns. Without the note of who is at the gate, one head
    -- would follow the other, and without a head those at the gate.
    IF granted > 0 THEN
        UPDATE pgbaton.semaphore AS s
           SET head = CASE WHEN is_head THEN NULL ELSE s.head END, head_until = CASE WHEN is_head THEN NULL ELSE s.head_until END,
               gate_until = CASE WHEN at_gate THEN NULL ELSE s.gate_until END
         WHERE s.id = claim_slots.semaphore AND (is_head OR (at_gate AND s.gate_until IS NOT NULL));
    ELSIF at_gate THEN
        UPDATE pgbaton.semaphore AS s SET gate_until = clock_timestamp() + interval '0.5 s' -- it asks more often
         WHERE s.id = claim_slots.semaphore AND (s.head_until > clock_timestamp() OR s.gate_until > clock_timestamp());
    ELSIF queue > 0 THEN
        UPDATE pgbaton.semaphore AS s SET head = claim_slots.holder, head_until = clock_timestamp() + queue * interval '1 ms'
         WHERE s.id = claim_slots.semaphore
           AND (s.head = claim_slots.holder OR s.head_until IS NULL OR s.head_until <= clock_timestamp())
           AND (is_head OR s.gate_until IS NULL OR s.gate_until <= clock_timestamp());
    END IF;
END;
$$;

CREATE FUNCTION pgbaton.claim_slots_anywhere(
    semaphore integer, gate bigint, holder bigint, wants integer[], ttl_ms integer, at_gate boolean, queue integer, look boolean,
    OUT capacity integer, OUT granted integer, OUT slots integer[], OUT token bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT c.capacity, c.granted, c.slots, c.token INTO capacity, granted, slots, token
      FROM pgbaton.claim_slots(semaphore, gate, holder, wants, ttl_ms, at_gate, queue, look) AS c;
END;
$$;

-- Locks as many free slots as the first of the requests want together, in their order and all or none for each;
-- NULL if that is none.
--
-- Before the first request gets nothing, the slots of holders whose sessions have ended are freed. And SKIP LOCKED may
-- say "none free" although one is: another looks at it, and does not take it. So a count that does not lock confirms it.
CREATE FUNCTION pgbaton.pick_slots(semaphore integer, wants integer[]) RETURNS integer[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    total  CONSTANT integer := (SELECT sum(n) FROM unnest(wants) AS n);
    picked integer[];
    fits   integer;
BEGIN
    FOR attempt IN 1 .. 5 LOOP
        picked := ARRAY(
            SELECT s.slot FROM pgbaton.slot AS s
            WHERE s.semaphore = pick_slots.semaphore AND NOT s.closed
              AND (s.holder IS NULL OR s.expires_at <= clock_timestamp())
            LIMIT total FOR UPDATE SKIP LOCKED);
        EXIT WHEN cardinality(picked) >= wants[1];
        WITH dead AS MATERIALIZED (
            SELECT s.slot FROM pgbaton.slot AS s
            WHERE s.semaphore = pick_slots.semaphore AND s.holder IN (
                SELECT h.holder FROM (SELECT DISTINCT d.holder FROM pgbaton.slot AS d
                                      WHERE d.semaphore = pick_slots.semaphore AND d.holder > 0) AS h
                WHERE NOT pgbaton.present(h.holder))
            FOR UPDATE SKIP LOCKED)
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL FROM dead
        WHERE s.semaphore = pick_slots.semaphore AND s.slot = dead.slot;
        IF NOT FOUND THEN
            EXIT WHEN cardinality(picked) >= (SELECT count(*) FROM pgbaton.slot AS s
                                              WHERE s.semaphore = pick_slots.semaphore AND NOT s.closed
                                                AND (s.holder IS NULL OR s.expires_at <= clock_timestamp()));
            PERFORM pg_sleep(0.0002);
        END IF;
    END LOOP;
    SELECT max(p.taken) INTO fits
      FROM (SELECT sum(w.n) OVER (ORDER BY w.i) AS taken FROM unnest(wants) WITH ORDINALITY AS w(n, i)) AS p
     WHERE p.taken <= cardinality(picked);
    RETURN picked[1:fits];
END;
$$;

-- Frees slots, each only if it is still the holder's by this claim and has not expired, and tells which were, by
-- their place in the arrays, and at whose gates somebody waits. Where nobody does, nobody can come there before
-- this transaction has ended, so a session that comes then sees what it freed.
CREATE FUNCTION pgbaton.free_slots(
    holder bigint, semaphores integer[], slots integer[], tokens bigint[], gates bigint[],
    OUT freed integer[], OUT awaited bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
AS $$
BEGIN
    IF pg_catalog.current_setting('search_path') OPERATOR(pg_catalog.<>) 'pg_catalog, pg_temp'::pg_catalog.text THEN
        SELECT f.freed, f.awaited INTO freed, awaited
          FROM pgbaton.free_slots_anywhere(holder, semaphores, slots, tokens, gates) AS f;
        RETURN;
    END IF;
    IF cardinality(slots) = 1 THEN
        IF NOT pg_try_advisory_xact_lock_shared(gates[1]) THEN
            awaited := gates;
        END IF;
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
         WHERE s.semaphore = semaphores[1] AND s.slot = slots[1]
           AND s.holder = free_slots.holder AND s.token = tokens[1] AND s.expires_at > clock_timestamp();
        IF FOUND THEN
            freed := ARRAY[1];
        END IF;
        RETURN;
    END IF;
    awaited := ARRAY(SELECT g FROM (SELECT DISTINCT g FROM unnest(gates) AS g) AS d WHERE NOT pg_try_advisory_xact_lock_shared(g));
    WITH gone AS (
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
          FROM unnest(semaphores, slots, tokens) WITH ORDINALITY AS f(semaphore, slot, token, place)
         WHERE s.semaphore = f.semaphore AND s.slot = f.slot
           AND s.holder = free_slots.holder AND s.token = f.token AND s.expires_at > clock_timestamp()
        RETURNING f.place)
    SELECT array_agg(g.place) INTO freed FROM gone AS g;
END;
$$;

CREATE FUNCTION pgbaton.free_slots_anywhere(
    holder bigint, semaphores integer[], slots integer[], tokens bigint[], gates bigint[],
    OUT freed integer[], OUT awaited bigint[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    SELECT f.freed, f.awaited INTO freed, awaited FROM pgbaton.free_slots(holder, semaphores, slots, tokens, gates) AS f;
END;
$$;

-- Holds slots for another ttl_ms, and tells which were still held, by their place in the arrays. With others: frees
-- whatever else the holder holds, which are claims whose answers were lost.
CREATE FUNCTION pgbaton.renew_slots(
    holder bigint, semaphores integer[], slots integer[], tokens bigint[], ttl_ms integer, others boolean,
    OUT renewed integer[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    WITH kept AS (
        UPDATE pgbaton.slot AS s SET expires_at = clock_timestamp() + ttl_ms * interval '1 ms'
          FROM unnest(semaphores, slots, tokens) WITH ORDINALITY AS f(semaphore, slot, token, place)
         WHERE s.semaphore = f.semaphore AND s.slot = f.slot
           AND s.holder = renew_slots.holder AND s.token = f.token AND s.expires_at > clock_timestamp()
        RETURNING f.place)
    SELECT array_agg(k.place) INTO renewed FROM kept AS k;
    IF others THEN
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
         WHERE s.holder = renew_slots.holder
           AND NOT EXISTS (SELECT FROM unnest(semaphores, slots, tokens) AS f(semaphore, slot, token)
                           WHERE s.semaphore = f.semaphore AND s.slot = f.slot AND s.token = f.token);
    END IF;
END;
$$;

-- Changes a capacity. Free slots are removed at once, held ones when they are free; until then none is
-- claimed. Returns NULL when there is no such semaphore.
CREATE FUNCTION pgbaton.resize_semaphore(semaphore integer, wanted integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    present  integer;
    patience CONSTANT text := current_setting('lock_timeout');
BEGIN
    -- All rows of a semaphore are locked here, while others lock some in an order of their own: a session that changes a
    -- capacity gives way soon, and tries again.
    PERFORM set_config('lock_timeout', '20ms', true);
    PERFORM FROM pgbaton.semaphore AS m WHERE m.id = resize_semaphore.semaphore FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM set_config('lock_timeout', patience, true);
        RETURN NULL;
    END IF;
    -- With all slots locked, none is being claimed.
    PERFORM FROM pgbaton.slot AS s WHERE s.semaphore = resize_semaphore.semaphore ORDER BY s.slot FOR NO KEY UPDATE;
    SELECT count(*) INTO present FROM pgbaton.slot AS s WHERE s.semaphore = resize_semaphore.semaphore;
    INSERT INTO pgbaton.slot (semaphore, slot)
    SELECT resize_semaphore.semaphore, n FROM generate_series(1, wanted) AS n
     WHERE NOT EXISTS (SELECT FROM pgbaton.slot AS s WHERE s.semaphore = resize_semaphore.semaphore AND s.slot = n)
     ORDER BY n LIMIT greatest(wanted - present, 0);
    UPDATE pgbaton.semaphore AS m SET capacity = wanted, surplus = greatest(present - wanted, 0)
     WHERE m.id = resize_semaphore.semaphore;
    PERFORM pgbaton.settle_semaphore(resize_semaphore.semaphore);
    PERFORM set_config('lock_timeout', patience, true);
    RETURN wanted;
END;
$$;

-- How many slots a semaphore has, and how many can be claimed.
CREATE FUNCTION pgbaton.semaphore_state(semaphore integer, OUT capacity integer, OUT available integer) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT m.capacity, greatest(0, (
               SELECT count(*) FROM pgbaton.slot AS s WHERE s.semaphore = m.id
                  AND (s.holder IS NULL OR s.expires_at <= clock_timestamp() OR NOT pgbaton.present(s.holder))) - m.surplus)::integer
      FROM pgbaton.semaphore AS m WHERE m.id = semaphore_state.semaphore;
$$;

-- Who holds how many slots, each claim by itself.
CREATE FUNCTION pgbaton.semaphore_holders(
    semaphore integer, OUT holder bigint, OUT name text, OUT slots integer, OUT token bigint, OUT expires_in_ms bigint)
RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.holder, coalesce(min(h.name), ''), count(*)::integer, s.token,
           (extract(epoch FROM min(s.expires_at) - clock_timestamp()) * 1000)::bigint
      FROM pgbaton.slot AS s LEFT JOIN pgbaton.holder AS h ON h.id = s.holder
     WHERE s.semaphore = semaphore_holders.semaphore AND s.expires_at > clock_timestamp() AND pgbaton.present(s.holder)
     GROUP BY s.holder, s.token
     ORDER BY s.token;
$$;

-- Whether a claim still holds all its slots. If so they cannot be claimed by anybody before the transaction has
-- ended, even if they expire; their holder may still renew and free them.
CREATE FUNCTION pgbaton.holds_slots(semaphore integer, holder bigint, slots integer[], token bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held integer;
BEGIN
    SELECT count(*) INTO held FROM (
        SELECT FROM pgbaton.slot AS s
         WHERE s.semaphore = holds_slots.semaphore AND s.slot = ANY (holds_slots.slots)
           AND s.holder = holds_slots.holder AND s.token = holds_slots.token AND s.expires_at > clock_timestamp()
         ORDER BY s.slot FOR KEY SHARE) AS h;
    RETURN held = cardinality(holds_slots.slots);
END;
$$;

-- Writes the table anew when it has more than so many bytes and much more than it needs, and returns whether it did;
-- NULL when it could not. While somebody holds an
-- old snapshot, the versions of the rows that are updated all the time cannot be removed, and every look at
-- the slots goes through them all. TRUNCATE does not care for snapshots; it needs the table for itself for
-- a moment, and waits for that a moment only. One who reads the table with an older snapshot sees it empty,
-- and in holds_slots fails to hold.
CREATE FUNCTION pgbaton.compact_slots(larger_than bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    kept pgbaton.slot[];
    most bigint;
BEGIN
    -- Above READ COMMITTED the rows as they were before the table was locked would be written back.
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RETURN NULL;
    END IF;
    IF pg_relation_size('pgbaton.slot'::regclass) <= larger_than THEN
        RETURN false;
    END IF;
    -- Written anew, a row needs less than 100 bytes of a page that is half full.
    SELECT greatest(larger_than, 400 * sum(m.capacity + m.surplus)) INTO most FROM pgbaton.semaphore AS m;
    IF pg_relation_size('pgbaton.slot'::regclass) <= most THEN
        RETURN false;
    END IF;
    PERFORM set_config('lock_timeout', '50ms', true);
    LOCK TABLE pgbaton.slot IN ACCESS EXCLUSIVE MODE;
    IF pg_relation_size('pgbaton.slot'::regclass) <= most THEN
        RETURN false; -- another has just done it
    END IF;
    kept := ARRAY(SELECT s FROM pgbaton.slot AS s ORDER BY s.semaphore, s.slot);
    TRUNCATE pgbaton.slot;
    INSERT INTO pgbaton.slot SELECT * FROM unnest(kept);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 4, 1;
END;

GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO PUBLIC;
