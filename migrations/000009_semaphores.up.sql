-- Semaphores among services that do not trust one another, and clocks that are set.
--
-- A function that acts for a holder makes sure that its caller acts for it. A session acts for the holder whose
-- advisory lock it has: pg_try_advisory_xact_lock of the holder's id succeeds in that session, and in any other only when
-- nobody has it, that is, when the holder's session has ended; what is done in the name of a dead holder harms nobody,
-- since its slots are everybody's. A holder without a session (an id below zero) is a row that belongs to a service.
-- Anybody can take the advisory lock of a holder that is dead, and set pgbaton.holder: then its slots come back after
-- two leases instead of at once. It decides nothing else.
--
-- A semaphore belongs to the service that made it; only who acts for that service claims, resizes or looks. What was made
-- before this belongs to nobody and is everybody's.
--
-- When is a slot that is held anybody's?
--   * Its holder's session has ended: at once.
--   * Its holder has no session: when it has expired by the clock. So a step of the server's clock ahead, by more than
--     what is left of the lease, gives it to another while its holder believes in it for up to a third of the lease.
--   * Its holder's session lives: not by the clock alone. A session that finds it expired notes that, and it is anybody's a
--     lease later, if it was not renewed meanwhile. A holder that lives renews three times in a lease; one that is paused loses the
--     session to idle_session_timeout, which no clock can mislead.
-- A claim that ends later than its own lease from now was made, or renewed, before the clock was set back. It is cut to a
-- lease from now (tend): who lives renews before that is over, however far the clock went back, so nothing is taken
-- from the living. A second is tolerated, which is not worth a write.
--
-- Locks: ACCESS EXCLUSIVE on pgbaton.holder, semaphore and slot for a moment; it waits for transactions that have used
-- them. Older clients go on.

ALTER TABLE pgbaton.holder ADD COLUMN service regrole, ADD COLUMN pid integer;
ALTER TABLE pgbaton.semaphore
    ADD COLUMN service   regrole,
    ADD COLUMN revision  integer     NOT NULL DEFAULT 0 CHECK (revision >= 0),
    ADD COLUMN declared  integer,
    ADD COLUMN opened_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE pgbaton.slot ADD COLUMN lease integer, ADD COLUMN overdue boolean NOT NULL DEFAULT false;

COMMENT ON COLUMN pgbaton.holder.service IS 'for whom it holds; NULL: a holder from before there were services';
COMMENT ON COLUMN pgbaton.holder.pid IS 'of its session';
COMMENT ON COLUMN pgbaton.semaphore.service IS 'whose it is; NULL: everybody''s';
COMMENT ON COLUMN pgbaton.semaphore.revision IS 'the greatest with which it was opened: its capacity counts; 0: capacities are compared';
COMMENT ON COLUMN pgbaton.semaphore.declared IS 'the capacity that came with the revision';
COMMENT ON COLUMN pgbaton.semaphore.opened_at IS 'when it was last opened, to the day';
COMMENT ON COLUMN pgbaton.slot.lease IS 'milliseconds from claim or renewal to expires_at';
COMMENT ON COLUMN pgbaton.slot.overdue IS 'somebody found it expired while its holder''s session lived, and gave it another lease';

-- Whether the session may act for a service, fast where nobody has SET ROLE. Not to be called by users: it is part of
-- functions with their owner's rights. A superuser, who is a member of every role (4571 is pg_execute_server_program), is
-- asked further, as in pgbaton.acts_for.
CREATE FUNCTION pgbaton.serves(service regrole) RETURNS boolean
LANGUAGE sql STABLE
RETURN service IS NULL
    OR (pg_catalog.current_setting('role'::pg_catalog.text) OPERATOR(pg_catalog.=) 'none'::pg_catalog.text
        AND pg_catalog.pg_has_role(session_user, service::pg_catalog.oid, 'MEMBER'::pg_catalog.text)
        AND NOT pg_catalog.pg_has_role(session_user, 4571::pg_catalog.oid, 'MEMBER'::pg_catalog.text))
    OR pgbaton.acts_for(service);

-- Refuses callers that do not act for a holder. One without a session, of which there is no row, becomes the caller's.
CREATE FUNCTION pgbaton.require_holder(holder bigint) RETURNS void
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

-- Refuses callers that do not act for a semaphore's service.
CREATE FUNCTION pgbaton.require_semaphore(name text, service regrole) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pgbaton.serves(service) THEN
        RAISE EXCEPTION 'pgbaton: the semaphore % is of the service %', quote_literal(name), service
            USING ERRCODE = 'insufficient_privilege',
            HINT = format('To use it as well: GRANT %s TO %s, which makes them one service; or use another name.', service,
                          coalesce(pgbaton.service(), pgbaton.session_role()::regrole));
    END IF;
END;
$$;

-- Forgets holders that are dead, as far as they hold nothing, and those without a session that were not heard of for a
-- week. Returns how many. A call looks at all holders, and each holder makes one now and then. Where there are more than twenty, chance
-- decides whether a call looks, so that their cost grows with the number of holders and not with its square.
CREATE FUNCTION pgbaton.forget_holders() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    forgotten integer;
BEGIN
    IF random() * (SELECT count(*) FROM pgbaton.holder) >= 20 THEN
        RETURN 0;
    END IF;
    WITH old AS MATERIALIZED (
        SELECT h.id FROM pgbaton.holder AS h
        WHERE CASE WHEN h.id > 0 THEN NOT pgbaton.present(h.id) ELSE h.since < clock_timestamp() - interval '7 days' END
          AND NOT EXISTS (SELECT FROM pgbaton.slot AS s WHERE s.holder = h.id AND (h.id < 0 OR s.expires_at > clock_timestamp()))
        LIMIT 1000 FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.holder AS h USING old WHERE h.id = old.id;
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END;
$$;

-- Makes the session a holder, and forgets dead ones. An id below zero is one without a session of its own. A session is
-- one holder: it is no longer what it was before. A service has at most 1,000 holders without a session that hold nothing.
CREATE OR REPLACE FUNCTION pgbaton.enlist(id bigint, name text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    former bigint;
    mine   CONSTANT regrole := pgbaton.service();
BEGIN
    IF (enlist.id <> 0 AND octet_length(enlist.name) <= 512) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.enlist: an id is not 0, and a name has at most 512 bytes'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF enlist.id > 0 THEN
        IF NOT pg_try_advisory_lock(enlist.id) THEN
            RAISE EXCEPTION 'pgbaton.enlist: the id is taken' USING ERRCODE = 'unique_violation';
        END IF;
        FOR former IN DELETE FROM pgbaton.holder AS h WHERE h.pid = pg_backend_pid() AND h.id <> enlist.id RETURNING h.id LOOP
            WHILE pgbaton.has_lock(former) LOOP -- else the row is of an older session with the same process id
                PERFORM pg_advisory_unlock(former);
            END LOOP;
        END LOOP;
        PERFORM set_config('pgbaton.holder', enlist.id::text, false);
    ELSE
        PERFORM pgbaton.require_holder(enlist.id);
        DELETE FROM pgbaton.holder AS h WHERE h.id IN (
            SELECT o.id FROM pgbaton.holder AS o
             WHERE o.id < 0 AND o.id <> enlist.id AND o.service = mine
               AND NOT EXISTS (SELECT FROM pgbaton.slot AS s WHERE s.holder = o.id)
             ORDER BY o.since DESC OFFSET 1000);
    END IF;
    INSERT INTO pgbaton.holder AS h (id, name, since, service, pid)
    VALUES (enlist.id, enlist.name, clock_timestamp(), mine, CASE WHEN enlist.id > 0 THEN pg_backend_pid() END)
    ON CONFLICT ON CONSTRAINT holder_pkey DO UPDATE
        SET name = excluded.name, since = excluded.since, service = coalesce(h.service, excluded.service), pid = excluded.pid;
    PERFORM pgbaton.forget_holders();
END;
$$;

-- Whether the session has the advisory lock of a bigint key.
CREATE FUNCTION pgbaton.has_lock(key bigint) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (SELECT FROM pg_locks AS l
                    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.pid = pg_backend_pid() AND l.granted
                      AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
                      AND l.classid = ((key >> 32) & 4294967295)::oid AND l.objid = (key & 4294967295)::oid
                      AND l.mode = 'ExclusiveLock');
$$;

-- Ends the holder that the session is, or one without a session: what it holds is free.
CREATE FUNCTION pgbaton.retire(holder bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.require_holder(holder);
    UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL WHERE s.holder = retire.holder;
    DELETE FROM pgbaton.holder AS h WHERE h.id = retire.holder;
END;
$$;

-- What is to be done now and then, by any client: dead holders are forgotten, and claims that end later than their own
-- leases allow are cut short. Returns of which semaphores, and how many. (For a claim from before leases were noted
-- it is the longest lease.)
CREATE FUNCTION pgbaton.tend(OUT semaphore text, OUT slots integer) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.forget_holders();
    RETURN QUERY
    WITH wrong AS MATERIALIZED (
        SELECT s.semaphore AS id, s.slot FROM pgbaton.slot AS s
         WHERE s.expires_at > clock_timestamp() + coalesce(s.lease, 3600000) * interval '1 ms' + interval '1 s'
           FOR NO KEY UPDATE SKIP LOCKED),
    cut AS (
        UPDATE pgbaton.slot AS s SET expires_at = clock_timestamp() + coalesce(s.lease, 3600000) * interval '1 ms'
          FROM wrong AS w WHERE s.semaphore = w.id AND s.slot = w.slot
        RETURNING s.semaphore AS id)
    SELECT m.name, count(*)::integer FROM cut AS c JOIN pgbaton.semaphore AS m ON m.id = c.id GROUP BY m.name ORDER BY m.name;
END;
$$;

-- Makes the semaphore if there is none of the name and a capacity is given, and tells its id and its capacity,
-- which may be another. Without a row: there is none.
--
-- A revision above zero counts the changes of the capacity in the code that opens it. Of all with which the
-- semaphore was opened the greatest decides, so that old code and new code can run side by side; one that is not the
-- greatest takes the capacity as it is. declared is the capacity that came with the greatest, NULL if none did.
CREATE FUNCTION pgbaton.open_semaphore(
    name text, wanted integer, revision integer, OUT id integer, OUT capacity integer, OUT newest integer, OUT declared integer)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m    record;
    made integer;
    mine CONSTANT regrole := pgbaton.service();
BEGIN
    IF (octet_length(open_semaphore.name) BETWEEN 1 AND 512 AND coalesce(wanted, 1) BETWEEN 1 AND 10000
        AND open_semaphore.revision BETWEEN 0 AND 2147483647 AND (wanted IS NOT NULL OR open_semaphore.revision = 0)) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.open_semaphore: a name has 1 to 512 bytes, a capacity is 1 to 10000'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT s.id, s.service, s.revision, s.opened_at INTO m FROM pgbaton.semaphore AS s WHERE s.name = open_semaphore.name;
    IF NOT FOUND AND wanted IS NOT NULL THEN
        IF wanted + (SELECT coalesce(sum(s.capacity + s.surplus), 0) FROM pgbaton.semaphore AS s
                     WHERE s.service IS NOT DISTINCT FROM mine) > 1000000 THEN
            RAISE EXCEPTION 'pgbaton.open_semaphore: the semaphores of the service % have a million permits', mine
                USING ERRCODE = 'program_limit_exceeded', HINT = 'An operator removes what is no longer used: pgbaton.prune_semaphores.';
        END IF;
        INSERT INTO pgbaton.semaphore AS s (name, gate, capacity, service, revision, declared)
        VALUES (open_semaphore.name, pgbaton.key('pgbaton/semaphore/' || open_semaphore.name), wanted, mine,
                open_semaphore.revision, CASE WHEN open_semaphore.revision > 0 THEN wanted END)
        ON CONFLICT DO NOTHING
        RETURNING s.id INTO made;
        INSERT INTO pgbaton.slot AS s (semaphore, slot)
        SELECT made, n FROM generate_series(1, wanted) AS n WHERE made IS NOT NULL;
        SELECT s.id, s.service, s.revision, s.opened_at INTO m FROM pgbaton.semaphore AS s WHERE s.name = open_semaphore.name;
    END IF;
    IF m.id IS NULL THEN
        RETURN;
    END IF;
    PERFORM pgbaton.require_semaphore(open_semaphore.name, m.service);
    IF m.opened_at < clock_timestamp() - interval '1 day' THEN
        UPDATE pgbaton.semaphore AS s SET opened_at = clock_timestamp() WHERE s.id = m.id;
    END IF;
    IF open_semaphore.revision > m.revision THEN
        PERFORM pgbaton.resize_semaphore(m.id, wanted); -- with the row locked, of two the greater comes last, or does nothing
        UPDATE pgbaton.semaphore AS s SET revision = open_semaphore.revision, declared = wanted
         WHERE s.id = m.id AND s.revision < open_semaphore.revision;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'pgbaton.open_semaphore: a newer revision came meanwhile' USING ERRCODE = 'lock_not_available';
        END IF;
    END IF;
    RETURN QUERY SELECT s.id, s.capacity, s.revision, s.declared FROM pgbaton.semaphore AS s WHERE s.name = open_semaphore.name;
END;
$$;

-- As the other, for code that knows of no revisions.
CREATE OR REPLACE FUNCTION pgbaton.open_semaphore(name text, wanted integer, OUT id integer, OUT capacity integer)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT o.id, o.capacity FROM pgbaton.open_semaphore(name, wanted, 0) AS o;
END;
$$;

-- Removes semaphores that were not opened for so long, at least two days, and of which nobody holds a slot. Returns how many.
-- For operators. Who still has one open gets "it was removed" from it, and opens it anew.
CREATE FUNCTION pgbaton.prune_semaphores(unused_for interval) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    pruned bigint;
BEGIN
    IF NOT pgbaton.operates() THEN
        RAISE EXCEPTION 'pgbaton.prune_semaphores: it is for operators' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF (unused_for >= interval '2 days') IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.prune_semaphores: at least two days' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH old AS MATERIALIZED (
        SELECT m.id FROM pgbaton.semaphore AS m
         WHERE m.opened_at < clock_timestamp() - unused_for
           AND NOT EXISTS (SELECT FROM pgbaton.slot AS s WHERE s.semaphore = m.id AND s.holder IS NOT NULL
                              AND (s.expires_at > clock_timestamp() OR (s.holder > 0 AND pgbaton.present(s.holder))))
           FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.semaphore AS m USING old WHERE m.id = old.id;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END;
$$;

-- Frees what is held by nobody any longer, of one semaphore, and notes what is expired while its holder's session lives.
-- Returns how many slots it freed.
CREATE FUNCTION pgbaton.reclaim_slots(semaphore integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    freed integer;
    late  boolean;
BEGIN
    SELECT coalesce(bool_or(s.expires_at <= clock_timestamp()), false) INTO late
      FROM pgbaton.slot AS s WHERE s.semaphore = reclaim_slots.semaphore AND s.holder > 0;
    WITH dead AS MATERIALIZED (
        SELECT h.holder FROM (SELECT DISTINCT d.holder FROM pgbaton.slot AS d
                               WHERE d.semaphore = reclaim_slots.semaphore AND d.holder > 0) AS h
         WHERE NOT pgbaton.present(h.holder)),
    gone AS MATERIALIZED (
        SELECT s.slot FROM pgbaton.slot AS s
         WHERE s.semaphore = reclaim_slots.semaphore
           AND (s.holder IN (SELECT d.holder FROM dead AS d)
                OR (s.expires_at <= clock_timestamp() AND (s.holder < 0 OR s.overdue)))
           FOR UPDATE SKIP LOCKED)
    UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL FROM gone AS g
     WHERE s.semaphore = reclaim_slots.semaphore AND s.slot = g.slot;
    GET DIAGNOSTICS freed = ROW_COUNT;
    IF late THEN
        WITH late AS MATERIALIZED (
            SELECT s.slot FROM pgbaton.slot AS s
             WHERE s.semaphore = reclaim_slots.semaphore AND s.holder > 0 AND NOT s.overdue AND s.expires_at <= clock_timestamp()
               FOR UPDATE SKIP LOCKED)
        UPDATE pgbaton.slot AS s
           SET overdue = true, expires_at = clock_timestamp() + coalesce(s.lease, 3600000) * interval '1 ms'
          FROM late AS l WHERE s.semaphore = reclaim_slots.semaphore AND s.slot = l.slot;
    END IF;
    RETURN freed;
END;
$$;

-- Removes slots that are more than the capacity, as far as they are free, and returns how many remain. While
-- any do, all slots are closed: the flag is in the row that a claim locks, so no claim can miss it.
CREATE OR REPLACE FUNCTION pgbaton.settle_semaphore(semaphore integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    excess  integer;
    removed integer;
BEGIN
    SELECT m.surplus INTO excess FROM pgbaton.semaphore AS m WHERE m.id = settle_semaphore.semaphore FOR NO KEY UPDATE;
    IF excess > 0 THEN
        PERFORM pgbaton.reclaim_slots(settle_semaphore.semaphore);
        WITH free AS MATERIALIZED (
            SELECT s.slot FROM pgbaton.slot AS s
            WHERE s.semaphore = settle_semaphore.semaphore AND s.holder IS NULL
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
CREATE OR REPLACE FUNCTION pgbaton.claim_slots(
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
    IF wants = '{1}' AND NOT look AND ttl_ms BETWEEN 1000 AND 3600000 AND holder > 0 AND pg_try_advisory_xact_lock(holder)
       AND (at_gate OR pg_try_advisory_xact_lock_shared(gate)) THEN
        UPDATE pgbaton.slot AS s
           SET holder = claim_slots.holder, token = pgbaton.draw_token(), lease = ttl_ms, overdue = false,
               expires_at = clock_timestamp() + ttl_ms * interval '1 ms'
         WHERE s.semaphore = claim_slots.semaphore AND s.slot = (
               SELECT f.slot FROM pgbaton.slot AS f
                WHERE f.semaphore = claim_slots.semaphore AND NOT f.closed AND f.holder IS NULL
                  AND EXISTS (SELECT FROM pgbaton.semaphore AS h
                               WHERE h.id = claim_slots.semaphore AND h.gate = claim_slots.gate
                                 AND (h.head_until IS NULL OR h.head_until <= clock_timestamp())
                                 AND pgbaton.serves(h.service))
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
    IF (ttl_ms BETWEEN 1000 AND 3600000 AND queue BETWEEN 0 AND 60000 AND cardinality(wants) BETWEEN 1 AND 1000
        AND 1 <= ALL (wants) AND 10000 >= ALL (wants) AND at_gate IS NOT NULL AND look IS NOT NULL AND gate IS NOT NULL) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.claim_slots: a lease is 1 s to 1 h, a turn at most 60 s, a request for 1 to 10000'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgbaton.require_holder(holder);
    granted := 0;
    SELECT s.name, s.service, s.capacity, s.surplus, s.head, s.head_until INTO m
      FROM pgbaton.semaphore AS s WHERE s.id = claim_slots.semaphore AND s.gate = claim_slots.gate;
    capacity := m.capacity;
    IF capacity IS NULL THEN
        RETURN;
    END IF;
    IF NOT pgbaton.serves(m.service) THEN
        PERFORM pgbaton.require_semaphore(m.name, m.service);
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
            token := CASE WHEN look THEN pgbaton.next_token() ELSE pgbaton.draw_token() END;
            UPDATE pgbaton.slot AS s
               SET holder = claim_slots.holder, token = claim_slots.token, lease = ttl_ms, overdue = false,
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

-- Locks as many free slots as the first of the requests want together, in their order and all or none for each;
-- NULL if that is none.
--
-- Before the first request gets nothing, the slots that nobody holds any longer are freed. And SKIP LOCKED may
-- say "none free" although one is: another looks at it, and does not take it. So a count that does not lock confirms it.
CREATE OR REPLACE FUNCTION pgbaton.pick_slots(semaphore integer, wants integer[]) RETURNS integer[]
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
            WHERE s.semaphore = pick_slots.semaphore AND NOT s.closed AND s.holder IS NULL
            LIMIT total FOR UPDATE SKIP LOCKED);
        EXIT WHEN cardinality(picked) >= wants[1];
        IF pgbaton.reclaim_slots(pick_slots.semaphore) = 0 THEN
            EXIT WHEN cardinality(picked) >= (SELECT count(*) FROM pgbaton.slot AS s
                                              WHERE s.semaphore = pick_slots.semaphore AND NOT s.closed AND s.holder IS NULL);
            PERFORM pg_sleep(0.0002);
        END IF;
    END LOOP;
    SELECT max(p.taken) INTO fits
      FROM (SELECT sum(w.n) OVER (ORDER BY w.i) AS taken FROM unnest(wants) WITH ORDINALITY AS w(n, i)) AS p
     WHERE p.taken <= cardinality(picked);
    RETURN picked[1:fits];
END;
$$;

-- Frees slots, each only if it is still the holder's by this claim and, where the holder has no session, has not
-- expired, and tells which were, by their place in the arrays, and at whose gates somebody waits. Where nobody does,
-- nobody can come there before this transaction has ended, so a session that comes then sees what it freed.
CREATE OR REPLACE FUNCTION pgbaton.free_slots(
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
    IF holder > 0 AND pg_try_advisory_xact_lock(holder) THEN
        NULL;
    ELSE
        PERFORM pgbaton.require_holder(holder);
    END IF;
    IF cardinality(slots) = 1 THEN
        IF NOT pg_try_advisory_xact_lock_shared(gates[1]) THEN
            awaited := gates;
        END IF;
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
         WHERE s.semaphore = semaphores[1] AND s.slot = slots[1]
           AND s.holder = free_slots.holder AND s.token = tokens[1] AND (s.holder > 0 OR s.expires_at > clock_timestamp());
        IF FOUND THEN
            freed := ARRAY[1];
        END IF;
        RETURN;
    END IF;
    IF cardinality(slots) > 10000 OR cardinality(gates) > 10000 THEN
        RAISE EXCEPTION 'pgbaton.free_slots: at most 10000 slots' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    awaited := ARRAY(SELECT g FROM (SELECT DISTINCT g FROM unnest(gates) AS g) AS d WHERE NOT pg_try_advisory_xact_lock_shared(g));
    WITH gone AS (
        UPDATE pgbaton.slot AS s SET holder = NULL, expires_at = NULL
          FROM unnest(semaphores, slots, tokens) WITH ORDINALITY AS f(semaphore, slot, token, place)
         WHERE s.semaphore = f.semaphore AND s.slot = f.slot
           AND s.holder = free_slots.holder AND s.token = f.token AND (s.holder > 0 OR s.expires_at > clock_timestamp())
        RETURNING f.place)
    SELECT array_agg(g.place) INTO freed FROM gone AS g;
END;
$$;

-- Holds slots for another ttl_ms, and tells which were still held, by their place in the arrays. A slot of a session
-- that has expired and that nobody has taken is still held. So is one that has not expired and whose row another
-- transaction has: nobody takes it before somebody has found it expired, and a lease after that. With others: frees
-- whatever else the holder holds, which are claims whose answers were lost.
CREATE OR REPLACE FUNCTION pgbaton.renew_slots(
    holder bigint, semaphores integer[], slots integer[], tokens bigint[], ttl_ms integer, others boolean,
    OUT renewed integer[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    busy    integer[];
    strange integer[] := '{}'; -- semaphores of other services: with the lock of a dead holder anybody stands for it
BEGIN
    IF (ttl_ms BETWEEN 1000 AND 3600000 AND cardinality(slots) <= 100000) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.renew_slots: a lease is 1 s to 1 h' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM pgbaton.require_holder(holder);
    IF holder > 0 THEN
        BEGIN -- what is held shall be renewed also while somebody has the table of semaphores
            LOCK TABLE pgbaton.semaphore IN ACCESS SHARE MODE NOWAIT;
            SELECT coalesce(array_agg(m.id), '{}') INTO strange
              FROM pgbaton.semaphore AS m WHERE m.id = ANY (semaphores) AND NOT pgbaton.serves(m.service);
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
        WITH mine AS MATERIALIZED (
            SELECT s.semaphore, s.slot, f.place FROM pgbaton.slot AS s
              JOIN unnest(semaphores, slots, tokens) WITH ORDINALITY AS f(semaphore, slot, token, place)
                ON s.semaphore = f.semaphore AND s.slot = f.slot
             WHERE s.holder = renew_slots.holder AND s.token = f.token AND s.semaphore <> ALL (strange)
               FOR NO KEY UPDATE OF s SKIP LOCKED),
        kept AS (
            UPDATE pgbaton.slot AS s
               SET expires_at = clock_timestamp() + ttl_ms * interval '1 ms', lease = ttl_ms, overdue = false
              FROM mine AS m WHERE s.semaphore = m.semaphore AND s.slot = m.slot
            RETURNING m.place)
        SELECT coalesce(array_agg(k.place), '{}') INTO renewed FROM kept AS k;
        IF cardinality(renewed) < cardinality(slots) THEN
            SELECT array_agg(f.place) INTO busy
              FROM unnest(semaphores, slots, tokens) WITH ORDINALITY AS f(semaphore, slot, token, place)
              JOIN pgbaton.slot AS s ON s.semaphore = f.semaphore AND s.slot = f.slot
             WHERE s.semaphore <> ALL (strange) AND f.place <> ALL (renewed) AND s.holder = renew_slots.holder AND s.token = f.token
               AND s.expires_at > clock_timestamp() AND NOT s.overdue AND coalesce(s.lease, 3600000) >= ttl_ms;
            renewed := renewed || busy;
        END IF;
    ELSE
        WITH kept AS (
            UPDATE pgbaton.slot AS s SET expires_at = clock_timestamp() + ttl_ms * interval '1 ms', lease = ttl_ms
              FROM unnest(semaphores, slots, tokens) WITH ORDINALITY AS f(semaphore, slot, token, place)
             WHERE s.semaphore = f.semaphore AND s.slot = f.slot
               AND s.holder = renew_slots.holder AND s.token = f.token AND s.expires_at > clock_timestamp()
            RETURNING f.place)
        SELECT array_agg(k.place) INTO renewed FROM kept AS k;
    END IF;
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
CREATE OR REPLACE FUNCTION pgbaton.resize_semaphore(semaphore integer, wanted integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m        record;
    present  integer;
    patience CONSTANT text := current_setting('lock_timeout');
BEGIN
    IF (wanted BETWEEN 1 AND 10000) IS NOT TRUE THEN
        RAISE EXCEPTION 'pgbaton.resize_semaphore: a capacity is 1 to 10000' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT s.name, s.service INTO m FROM pgbaton.semaphore AS s WHERE s.id = resize_semaphore.semaphore;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    PERFORM pgbaton.require_semaphore(m.name, m.service);
    IF wanted + (SELECT coalesce(sum(s.capacity + s.surplus), 0) FROM pgbaton.semaphore AS s
                  WHERE s.service IS NOT DISTINCT FROM m.service AND s.id <> resize_semaphore.semaphore) > 1000000 THEN
        RAISE EXCEPTION 'pgbaton.resize_semaphore: the semaphores of the service % have a million permits', m.service
            USING ERRCODE = 'program_limit_exceeded', HINT = 'An operator removes what is no longer used: pgbaton.prune_semaphores.';
    END IF;
    -- All rows of a semaphore are locked here, while others lock some in an order of their own: a session that changes a
    -- capacity gives way soon, and tries again.
    PERFORM set_config('lock_timeout', '20ms', true);
    PERFORM FROM pgbaton.semaphore AS s WHERE s.id = resize_semaphore.semaphore FOR NO KEY UPDATE;
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
    UPDATE pgbaton.semaphore AS s SET capacity = wanted, surplus = greatest(present - wanted, 0)
     WHERE s.id = resize_semaphore.semaphore;
    PERFORM pgbaton.settle_semaphore(resize_semaphore.semaphore);
    PERFORM set_config('lock_timeout', patience, true);
    RETURN wanted;
END;
$$;

-- How many slots a semaphore has, and how many can be claimed.
CREATE OR REPLACE FUNCTION pgbaton.semaphore_state(semaphore integer, OUT capacity integer, OUT available integer) RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m record;
BEGIN
    SELECT * INTO m FROM pgbaton.semaphore AS s WHERE s.id = semaphore_state.semaphore;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pgbaton.require_semaphore(m.name, m.service);
    RETURN QUERY
    SELECT m.capacity, greatest(0, (
        SELECT count(*) FROM pgbaton.slot AS s WHERE s.semaphore = m.id
           AND (s.holder IS NULL OR (s.expires_at <= clock_timestamp() AND (s.holder < 0 OR s.overdue))
                OR NOT pgbaton.present(s.holder))) - m.surplus)::integer;
END;
$$;

-- Who holds how many slots, each claim by itself.
CREATE OR REPLACE FUNCTION pgbaton.semaphore_holders(
    semaphore integer, OUT holder bigint, OUT name text, OUT slots integer, OUT token bigint, OUT expires_in_ms bigint)
RETURNS SETOF record
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m record;
BEGIN
    SELECT s.name, s.service INTO m FROM pgbaton.semaphore AS s WHERE s.id = semaphore_holders.semaphore;
    PERFORM pgbaton.require_semaphore(m.name, m.service);
    RETURN QUERY
    SELECT s.holder, coalesce(min(h.name), ''), count(*)::integer, s.token,
           greatest(0, extract(epoch FROM min(s.expires_at) - clock_timestamp()) * 1000)::bigint
      FROM pgbaton.slot AS s LEFT JOIN pgbaton.holder AS h ON h.id = s.holder
     WHERE s.semaphore = semaphore_holders.semaphore AND (s.holder > 0 OR s.expires_at > clock_timestamp())
       AND pgbaton.present(s.holder)
     GROUP BY s.holder, s.token
     ORDER BY s.token;
END;
$$;

-- Whether a claim still holds all its slots. If so they cannot be claimed by anybody before the transaction has
-- ended, even if they expire; their holder may still renew and free them.
CREATE OR REPLACE FUNCTION pgbaton.holds_slots(semaphore integer, holder bigint, slots integer[], token bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    m    record;
    held integer;
BEGIN
    SELECT s.name, s.service INTO m FROM pgbaton.semaphore AS s WHERE s.id = holds_slots.semaphore;
    PERFORM pgbaton.require_semaphore(m.name, m.service);
    SELECT count(*) INTO held FROM (
        SELECT FROM pgbaton.slot AS s
         WHERE s.semaphore = holds_slots.semaphore AND s.slot = ANY (holds_slots.slots)
           AND s.holder = holds_slots.holder AND s.token = holds_slots.token
           AND (s.expires_at > clock_timestamp() OR (s.holder > 0 AND pgbaton.present(s.holder)))
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
--
-- It is for operators: who calls it and leaves the transaction open stops all semaphores of all services, and no
-- function can end its caller's transaction. A service is told when it is due (42501), so that its log says so.
CREATE OR REPLACE FUNCTION pgbaton.compact_slots(larger_than bigint) RETURNS boolean
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
    IF NOT pgbaton.operates() THEN
        RAISE EXCEPTION 'pgbaton.compact_slots: the table of slots has % bytes, and only an operator may write it anew',
            pg_relation_size('pgbaton.slot'::regclass) USING ERRCODE = 'insufficient_privilege',
            HINT = 'Somebody holds an old snapshot. As an operator: SELECT pgbaton.compact_slots(524288).';
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
    SELECT 9, 1;
END;
