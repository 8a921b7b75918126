-- Locks: drops objects that only running clients and operators use; the record of freeings is gone.

DROP FUNCTION pgbaton.freeings;
DROP FUNCTION pgbaton.settle_free;
DROP FUNCTION pgbaton.end_holder;
DROP FUNCTION pgbaton.holds_key;
DROP FUNCTION pgbaton.answer_free;
DROP FUNCTION pgbaton.look_free;
DROP FUNCTION pgbaton.speaks_for;
DROP FUNCTION pgbaton.request_free;
DROP TABLE pgbaton.freeing;

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
            withdraw_waits, waits, publish_locks, list_locks, join_engine, acquire_lease, acquire_leases, release_lease, release_leases, renew_leases,
            leave_leases, tend_leases, lock_leases}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign, change_engine}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits, prune_locks, correct_lease, dead_holders, lease_tokens, raise_tokens,
            try_key, free_key, call_next, free_leases, require_leases, client_lives, attends}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 15, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
