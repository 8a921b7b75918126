-- Locks are advisory locks again, and nothing says so: clients of leases must be gone.
DROP FUNCTION pgbaton.change_engine;
DROP FUNCTION pgbaton.join_engine;
DROP FUNCTION pgbaton.engine_record;
DROP FUNCTION pgbaton.client_lives;
DROP FUNCTION pgbaton.tend_leases;
DROP FUNCTION pgbaton.leave_leases;
DROP FUNCTION pgbaton.free_leases;
DROP FUNCTION pgbaton.renew_leases;
DROP FUNCTION pgbaton.release_leases;
DROP FUNCTION pgbaton.release_lease;
DROP FUNCTION pgbaton.call_next;
DROP FUNCTION pgbaton.free_key;
DROP FUNCTION pgbaton.try_key;
DROP FUNCTION pgbaton.raise_tokens;
DROP FUNCTION pgbaton.lease_tokens;
DROP FUNCTION pgbaton.dead_holders;
DROP FUNCTION pgbaton.acquire_leases;
DROP FUNCTION pgbaton.keep_grants;
DROP FUNCTION pgbaton.acquire_lease;
DROP FUNCTION pgbaton.correct_lease;

DROP TABLE pgbaton.lock_client;
DROP TABLE pgbaton.lock_engine;
DROP TABLE pgbaton.lease_share;
DROP TABLE pgbaton.lease;

CREATE OR REPLACE FUNCTION pgbaton.function_sets() RETURNS TABLE (name text, set text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT f.name, s.set
      FROM (VALUES
        ('everybody', '{schema_version, key, gate, function_sets, session_role, service, acts_for, operates, bump_version,
            fence_guard}'::text[]),
        ('service', '{server_identity, tokens_trusted, repair_tokens, next_token, draw_token, begin_session, wait_for_turn,
            wait_for_turns, lock_for_transaction, fence, enlist, retire, tend, open_semaphore, claim_slots, free_slots,
            renew_slots, resize_semaphore, semaphore_state, semaphore_holders, holds_slots, compact_slots, keep_leaders,
            strike_leaders, leader_of, request_resign, begin_run, start_run, end_run, look_run, forget_run, publish_waits,
            withdraw_waits, waits}'),
        ('operator', '{prune, prune_fences, prune_semaphores, assign, reassign}'),
        ('internal', '{grant_service, grant_operator, revoke_grants, apply_grants, record_grantee, serves, present, has_lock,
            forget_holders, require_holder, require_semaphore, reclaim_slots, settle_semaphore, pick_slots,
            claim_slots_anywhere, free_slots_anywhere, refuse, drawn, record_run, run_tolerance, require_operator,
            require_session, prune_leaders, prune_waits}')) AS s (set, names),
      unnest(s.names) AS f (name);
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 13, 1;
END;

SELECT pgbaton.apply_grants(keep_draws => true);
