-- For whom a session speaks. Roles that may use the schema are services or operators; what a service has made, its
-- semaphores, leaders, fences and jobs, belongs to it, and other services keep their hands off it.
--
-- Locks: creates new objects and replaces a function; waits for nobody.

-- The roles that were given the use of this schema. A service is usually a group: every role that is a member of it
-- speaks for it.
CREATE TABLE pgbaton.grantee (
    role     regrole PRIMARY KEY,
    operator boolean NOT NULL
);

COMMENT ON COLUMN pgbaton.grantee.operator IS 'may do what concerns the services of others';

-- The role that the session acts as: that of its SET ROLE, else the one that logged in. Inside of a function with its
-- owner's rights current_user is the owner, so it cannot be asked.
CREATE FUNCTION pgbaton.session_role() RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN quote_ident(coalesce(nullif(current_setting('role'), 'none'), session_user))::regrole::oid;
END;
$$;

-- Whether the session may act for a service: it is the role, or a member of it, or an operator. What belongs to no role
-- (NULL), or to one that was dropped, is everybody's.
CREATE FUNCTION pgbaton.acts_for(service regrole) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN service IS NULL
        OR pg_has_role(pgbaton.session_role(), service::oid, 'MEMBER')
        OR NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = service::oid)
        OR pgbaton.operates();
END;
$$;

-- Whether the session may do what concerns everybody: it owns the schema, or was made an operator.
CREATE FUNCTION pgbaton.operates() RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM pg_namespace AS n
                    WHERE n.nspname = 'pgbaton' AND pg_has_role(pgbaton.session_role(), n.nspowner, 'MEMBER'))
        OR EXISTS (SELECT FROM pgbaton.grantee AS g
                    WHERE g.operator AND pg_has_role(pgbaton.session_role(), g.role::oid, 'MEMBER'));
END;
$$;

-- The service that what the session makes belongs to: the grantee that its role is or, by the name's order the first,
-- is a member of; else the role itself. A superuser is a member of every role, and stands for itself.
CREATE FUNCTION pgbaton.service() RETURNS regrole
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me CONSTANT oid := pgbaton.session_role();
BEGIN
    RETURN coalesce(
        (SELECT g.role FROM pgbaton.grantee AS g JOIN pg_roles AS r ON r.oid = g.role::oid
          WHERE NOT g.operator AND pg_has_role(me, r.oid, 'MEMBER')
            AND NOT (SELECT s.rolsuper FROM pg_roles AS s WHERE s.oid = me)
          ORDER BY r.oid <> me, r.rolname LIMIT 1),
        me::regrole);
END;
$$;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 7, 1;
END;
