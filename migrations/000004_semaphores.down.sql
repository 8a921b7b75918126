-- Forgets every semaphore, and who holds its permits.
DROP FUNCTION pgbaton.compact_slots(bigint);
DROP FUNCTION pgbaton.holds_slots(integer, bigint, integer[], bigint);
DROP FUNCTION pgbaton.semaphore_holders(integer);
DROP FUNCTION pgbaton.semaphore_state(integer);
DROP FUNCTION pgbaton.resize_semaphore(integer, integer);
DROP FUNCTION pgbaton.renew_slots(bigint, integer[], integer[], bigint[], integer, boolean);
DROP FUNCTION pgbaton.free_slots_anywhere(bigint, integer[], integer[], bigint[], bigint[]);
DROP FUNCTION pgbaton.free_slots(bigint, integer[], integer[], bigint[], bigint[]);
DROP FUNCTION pgbaton.claim_slots_anywhere(integer, bigint, bigint, integer[], integer, boolean, integer, boolean);
DROP FUNCTION pgbaton.claim_slots(integer, bigint, bigint, integer[], integer, boolean, integer, boolean);
DROP FUNCTION pgbaton.pick_slots(integer, integer[]);
DROP FUNCTION pgbaton.settle_semaphore(integer);
DROP FUNCTION pgbaton.open_semaphore(text, integer);
DROP FUNCTION pgbaton.enlist(bigint, text);
DROP TABLE pgbaton.slot;
DROP TABLE pgbaton.semaphore;
DROP FUNCTION pgbaton.present(bigint);
DROP TABLE pgbaton.holder;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 3, 1;
END;
