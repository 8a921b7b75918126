-- Waiting for several keys at the same time. What a waiting session has gathered is the session's alone, which the
-- server ends after a second of silence: a process that freezes while it waits keeps others waiting no longer than that.
--
-- Locks: creates a function and replaces another; waits for nobody.

-- Takes the keys in their order, each after its gate, for the session: those that are held already are not taken
-- again. It returns how many of each are held then. When all are, the keys are given back, and the gates kept: it is
-- the session's turn. Without keys it waits at the gates alone.
--
-- All waits together are no longer than wait_ms, and none leaves a line in the server's log if wait_ms is below
-- deadlock_timeout; with 0 there are only tries. Nobody who takes several keys in the common order, nor anybody who
-- waits for one, can be in a cycle with it.
--
-- An error from a lock function does not mean "not held": a timeout or cancel can race with the grant. So what must
-- be waited for is locked for the transaction, in a block whose failure gives it back in every case, and for
-- the session only when it is held: one's own lock is no obstacle. What remains is an error outside of that
-- block, such as a cancel from outside that arrives late, or a full lock table: it is raised, and the session
-- still holds what it has gathered. So after any error: unlock all, or end the session.
CREATE FUNCTION pgbaton.wait_for_turns(
    gates bigint[], keys bigint[], pairs boolean[], INOUT gates_held integer, INOUT keys_held integer, wait_ms integer)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    give_up CONSTANT timestamptz := clock_timestamp() + wait_ms * interval '1 ms';
    high    integer;
    low     integer;
    taken   boolean;
BEGIN
    WHILE gates_held < cardinality(gates) OR keys_held < cardinality(keys) LOOP
        IF gates_held <= keys_held THEN
            IF NOT pg_try_advisory_lock(gates[gates_held + 1]) THEN
                IF wait_ms <= 0 THEN
                    RETURN;
                END IF;
                BEGIN
                    PERFORM set_config('lock_timeout',
                        greatest((extract(epoch FROM give_up - clock_timestamp()) * 1000)::integer, 1)::text, true);
                    PERFORM pg_advisory_xact_lock(gates[gates_held + 1]);
                EXCEPTION WHEN lock_not_available OR query_canceled THEN
                    RETURN;
                END;
                IF NOT pg_try_advisory_lock(gates[gates_held + 1]) THEN
                    RAISE EXCEPTION 'pgbaton.wait_for_turns: a lock that is held is refused';
                END IF;
            END IF;
            gates_held := gates_held + 1;
        ELSE
            high := keys[keys_held + 1] >> 32;
            low := (keys[keys_held + 1] << 32) >> 32;
            taken := CASE WHEN pairs[keys_held + 1] THEN pg_try_advisory_lock(high, low)
                          ELSE pg_try_advisory_lock(keys[keys_held + 1]) END;
            IF NOT taken THEN
                IF wait_ms <= 0 THEN
                    RETURN;
                END IF;
                BEGIN
                    PERFORM set_config('lock_timeout',
                        greatest((extract(epoch FROM give_up - clock_timestamp()) * 1000)::integer, 1)::text, true);
                    PERFORM CASE WHEN pairs[keys_held + 1] THEN pg_advisory_xact_lock(high, low)
                                 ELSE pg_advisory_xact_lock(keys[keys_held + 1]) END;
                EXCEPTION WHEN lock_not_available OR query_canceled THEN
                    RETURN;
                END;
                taken := CASE WHEN pairs[keys_held + 1] THEN pg_try_advisory_lock(high, low)
                              ELSE pg_try_advisory_lock(keys[keys_held + 1]) END;
                IF NOT taken THEN
                    RAISE EXCEPTION 'pgbaton.wait_for_turns: a lock that is held is refused';
                END IF;
            END IF;
            keys_held := keys_held + 1;
        END IF;
    END LOOP;
    FOR i IN 1 .. cardinality(keys) LOOP
        taken := CASE WHEN pairs[i] THEN pg_advisory_unlock((keys[i] >> 32)::integer, ((keys[i] << 32) >> 32)::integer)
                      ELSE pg_advisory_unlock(keys[i]) END;
    END LOOP;
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 10, 1;
END;
