-- Who may call what. EXECUTE is granted and no longer everybody's: pgbaton.grant_service and pgbaton.grant_operator give a
-- role one of two sets of functions, and write down what it is. See docs/security.md.
--
-- Every role that has USAGE on the schema now becomes a service, and keeps USAGE on the sequence of tokens if it has it, so
-- that clients of before go on. When the last of these is gone, SELECT pgbaton.apply_grants() takes it from them. Where there is one such role,
-- what has been made up to now becomes its own, and where there is none, the owner's; else it stays everybody's, until
-- pgbaton.assign or pgbaton.reassign gives it to somebody.
--
-- A migration after this one that adds or drops a function replaces pgbaton.function_sets and then runs
-- SELECT pgbaton.apply_grants(keep_draws => true): without keep_draws, clients of before could draw no tokens.
--
-- Locks: changes privileges and rows; waits for transactions that have fenced, or begun a run, where there is one role.

-- Each function of this schema, overloads under one name, is in one set: everybody's (PUBLIC's), that of services, which
-- operators have as well, that of operators, or internal, which nobody may call but the owner.
CREATE FUNCTION pgbaton.function_sets() RETURNS TABLE (name text, set text)
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

-- Makes the privileges in this schema what pgbaton.grantee and pgbaton.function_sets say, whatever ALTER DEFAULT PRIVILEGES or
-- somebody by hand has given. For the schema's owner. keep_draws leaves USAGE on the sequence to those who have it, for clients
-- from before pgbaton.draw_token: with it a role can draw past the clock, see pgbaton.repair_tokens. Of tables others may keep SELECT and nothing else: with TRIGGER, for
-- example, code of theirs would run with the owner's rights. Nobody else may create anything in the schema.
CREATE FUNCTION pgbaton.apply_grants(keep_draws boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner CONSTANT oid := (SELECT n.nspowner FROM pg_namespace AS n WHERE n.nspname = 'pgbaton');
    command text;
BEGIN
    IF NOT pg_has_role(current_user, owner, 'USAGE') THEN
        RAISE EXCEPTION 'only the owner of the schema pgbaton, %, grants its use', owner::regrole
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- Two who change one function's privileges would fail. A role with USAGE on the schema can hold locks up to ROW EXCLUSIVE
    -- (by PREPARE, without any right on the table), so it must be a mode that does not conflict with those.
    LOCK TABLE pgbaton.grantee IN SHARE UPDATE EXCLUSIVE MODE;
    DELETE FROM pgbaton.grantee AS g WHERE g.role::oid <> 0 AND NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = g.role::oid);
    FOR command IN
        WITH objects AS (
            SELECT 'SCHEMA pgbaton' AS object, n.nspacl AS acl, NULL::text AS set, 'n' AS kind
              FROM pg_namespace AS n WHERE n.nspname = 'pgbaton'
            UNION ALL
            SELECT format('ROUTINE %s', p.oid::regprocedure), coalesce(p.proacl, acldefault('f', p.proowner)), f.set, 'f'
              FROM pgbaton.function_sets() AS f
              JOIN pg_proc AS p ON p.proname = f.name AND p.pronamespace = 'pgbaton'::regnamespace
            UNION ALL
            SELECT format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass), c.relacl, NULL,
                   CASE c.relkind WHEN 'S' THEN 'S' ELSE 'r' END
              FROM pg_class AS c
             WHERE c.relnamespace = 'pgbaton'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S')),
        wanted AS (
            SELECT o.object, g.role::oid AS role, CASE o.kind WHEN 'f' THEN 'EXECUTE' ELSE 'USAGE' END AS privilege
              FROM objects AS o, pgbaton.grantee AS g
             WHERE o.kind = 'n' OR o.set = 'service' OR (o.set = 'operator' AND g.operator)
            UNION ALL
            SELECT o.object, 0, 'EXECUTE' FROM objects AS o WHERE o.set = 'everybody'),
        had AS (
            SELECT o.object, o.kind, a.grantee AS role, a.privilege_type AS privilege, a.is_grantable
              FROM objects AS o, aclexplode(o.acl) AS a WHERE a.grantee <> owner)
        SELECT format('REVOKE %s ON %s FROM %s CASCADE', h.privilege, h.object,
                      CASE h.role WHEN 0 THEN 'PUBLIC' ELSE h.role::regrole::text END) AS command, 1 AS place
          FROM had AS h
         WHERE NOT (h.kind = 'n' AND h.privilege = 'USAGE') AND NOT (h.kind = 'r' AND h.privilege = 'SELECT')
           AND NOT (h.kind = 'S' AND h.privilege = 'USAGE' AND keep_draws)
           AND NOT EXISTS (SELECT FROM wanted AS w
                            WHERE w.object = h.object AND w.role = h.role AND w.privilege = h.privilege)
        UNION ALL
        SELECT format('REVOKE GRANT OPTION FOR %s ON %s FROM %s CASCADE', h.privilege, h.object, h.role::regrole), 1
          FROM had AS h WHERE h.is_grantable AND h.role <> 0
        UNION ALL
        SELECT format('GRANT %s ON %s TO %s', w.privilege, w.object,
                      CASE w.role WHEN 0 THEN 'PUBLIC' ELSE w.role::regrole::text END), 2
          FROM wanted AS w
         WHERE w.role <> owner
           AND NOT EXISTS (SELECT FROM had AS h WHERE h.object = w.object AND h.role = w.role AND h.privilege = w.privilege)
         ORDER BY place
    LOOP
        EXECUTE command;
    END LOOP;
END;
$$;

-- Writes down what a role is, and gives it its set.
CREATE FUNCTION pgbaton.record_grantee(role regrole, operator boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = role::oid) THEN
        RAISE EXCEPTION 'role % does not exist', coalesce(role::text, 'NULL') USING ERRCODE = 'undefined_object';
    END IF;
    INSERT INTO pgbaton.grantee AS g VALUES (record_grantee.role, record_grantee.operator)
    ON CONFLICT ON CONSTRAINT grantee_pkey DO UPDATE SET operator = excluded.operator;
    PERFORM pgbaton.apply_grants(keep_draws => true);
END;
$$;

-- Lets a role use what a service uses: it, and every role that is a member of it, is this service. For the schema's owner. The
-- role is written as in GRANT: SELECT pgbaton.grant_service('billing'), or with quotes in it, '"Billing 2"'.
CREATE FUNCTION pgbaton.grant_service(role regrole) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.record_grantee(role, false);
END;
$$;

-- Lets a role do what concerns every service. An operator may do all that any service may.
CREATE FUNCTION pgbaton.grant_operator(role regrole) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.record_grantee(role, true);
END;
$$;

-- Takes the use of the schema from a role; '-' is PUBLIC. What the role has made stays its own.
CREATE FUNCTION pgbaton.revoke_grants(role regrole) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    name CONSTANT text := CASE role::oid WHEN 0 THEN 'PUBLIC' ELSE role::text END;
BEGIN
    DELETE FROM pgbaton.grantee AS g WHERE g.role = revoke_grants.role;
    PERFORM pgbaton.apply_grants(keep_draws => true);
    IF EXISTS (SELECT FROM pg_namespace AS n WHERE n.nspname = 'pgbaton' AND n.nspowner = role::oid) THEN
        RETURN; -- the functions work with the owner's rights
    END IF;
    EXECUTE format('REVOKE ALL ON SCHEMA pgbaton FROM %s CASCADE', name);
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA pgbaton FROM %s CASCADE', name);
    EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgbaton FROM %s CASCADE', name);
END;
$$;

-- Gives what one service has made to another, so that its name goes to a group, for example: fences, jobs and semaphores. NULL
-- is everybody. Returns how many rows. Leaders and waits are published anew by those who lead and wait.
CREATE FUNCTION pgbaton.reassign(old regrole, new regrole) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owned regclass;
    moved bigint;
    total bigint := 0;
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.reassign');
    FOR owned IN
        SELECT c.oid FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
         WHERE c.relnamespace = 'pgbaton'::regnamespace AND c.relkind = 'r' AND a.attname = 'service' AND NOT a.attisdropped
           AND c.relname NOT IN ('leader', 'wait', 'wait_look')
         ORDER BY c.relname
    LOOP
        EXECUTE format('UPDATE %s SET service = $1 WHERE service IS NOT DISTINCT FROM $2', owned) USING new, old;
        GET DIAGNOSTICS moved = ROW_COUNT;
        total := total + moved;
    END LOOP;
    RETURN total;
END;
$$;

-- Gives a fence, a job or a semaphore, each by its name, to a service, or with NULL to everybody; false if there is none. The
-- resource of a job is named as that of a fence.
CREATE FUNCTION pgbaton.assign(what text, name text, service regrole) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.assign');
    CASE what
        WHEN 'fence' THEN
            UPDATE pgbaton.fence AS f SET service = assign.service WHERE f.resource = assign.name;
        WHEN 'job' THEN
            UPDATE pgbaton.last_run AS r SET service = assign.service WHERE r.resource = assign.name;
        WHEN 'semaphore' THEN
            UPDATE pgbaton.semaphore AS m SET service = assign.service WHERE m.name = assign.name;
        ELSE
            RAISE EXCEPTION 'pgbaton.assign: % is no fence, job or semaphore', coalesce(quote_literal(what), 'NULL')
                USING ERRCODE = 'invalid_parameter_value';
    END CASE;
    RETURN FOUND;
END;
$$;

-- Forgets what is older than that: fences as pgbaton.prune_fences does, so at least an hour; runs whose window has passed, too;
-- leaders and waits whose sessions are gone. Returns how many of each.
CREATE FUNCTION pgbaton.prune(older_than interval) RETURNS TABLE (what text, pruned bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pgbaton.require_operator('pgbaton.prune');
    what := 'fences';
    pruned := pgbaton.prune_fences(older_than);
    RETURN NEXT;
    what := 'jobs';
    WITH old AS MATERIALIZED (
        SELECT r.resource FROM pgbaton.last_run AS r
         WHERE r.ran_at < clock_timestamp() - older_than
           AND coalesce(r.ran_at + r.at_least < clock_timestamp(), false) FOR UPDATE SKIP LOCKED)
    DELETE FROM pgbaton.last_run AS r USING old WHERE r.resource = old.resource;
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN NEXT;
    what := 'leaders';
    pruned := pgbaton.prune_leaders(older_than, NULL);
    RETURN NEXT;
    what := 'waits';
    pruned := pgbaton.prune_waits(NULL, NULL);
    RETURN NEXT;
END;
$$;

REVOKE EXECUTE ON ALL ROUTINES IN SCHEMA pgbaton FROM PUBLIC;

CREATE FUNCTION pgbaton.adopt() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner    regrole;
    services regrole[];
BEGIN
    INSERT INTO pgbaton.grantee AS g (role, operator)
    SELECT DISTINCT a.grantee::regrole, false
      FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
     WHERE n.nspname = 'pgbaton' AND a.privilege_type = 'USAGE' AND a.grantee <> n.nspowner
        ON CONFLICT DO NOTHING;
    PERFORM pgbaton.apply_grants(keep_draws => true);
    SELECT n.nspowner::regrole INTO owner FROM pg_namespace AS n WHERE n.nspname = 'pgbaton';
    SELECT array_agg(g.role) INTO services FROM pgbaton.grantee AS g;
    RAISE NOTICE 'pgbaton: services are now %', coalesce(services::text, 'none');
    IF services IS NULL THEN
        PERFORM pgbaton.reassign(NULL, owner);
    ELSIF cardinality(services) = 1 AND services[1]::oid <> 0 THEN
        PERFORM pgbaton.reassign(NULL, services[1]);
    END IF;
END;
$$;

SELECT pgbaton.adopt();
DROP FUNCTION pgbaton.adopt();

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 13, 1;
END;
