-- For whom a session speaks. Roles that may use the schema are services or operators; what a service has made, its
-- semaphores, leaders, fences and jobs, belongs to it, and other services keep their hands off it.
--
-- Locks: creates new objects and replaces a function; waits for nobody.

-- The roles that were given the use of this schema. A service is usually a group: every role that is a member of it
-- speaks for it. The role 0 is PUBLIC: where everybody was given the use of the schema, roles that are no members of a
-- service act for nobody, and what they make is everybody's.
CREATE TABLE pgbaton.grantee (
    role     regrole PRIMARY KEY,
    operator boolean NOT NULL
);

COMMENT ON COLUMN pgbaton.grantee.operator IS 'may do what concerns the services of others';

-- The role that the session acts as: that of its SET ROLE, else the one that logged in. Inside of a function with its
-- owner's rights current_user is the owner, so it cannot be asked. Names are qualified, and there is no setting of
-- search_path, so that the server inlines the function.
CREATE FUNCTION pgbaton.session_role() RETURNS oid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN pg_catalog.quote_ident(
    CASE WHEN pg_catalog.current_setting('role'::pg_catalog.text) OPERATOR(pg_catalog.=) 'none'::pg_catalog.text
         THEN session_user::pg_catalog.text
         ELSE pg_catalog.current_setting('role'::pg_catalog.text) END)::pg_catalog.regrole::pg_catalog.oid;

-- Whether the session may act for a service: its role is the service, or a member of it, or an operator. What belongs to
-- no role (NULL, or 0), or to one that was dropped, is everybody's. A superuser is a member of every role, and so is
-- asked further.
--
-- Called where speed matters, so it has no setting of search_path, names in it are qualified, and it looks at no table before
-- it must: a role that is no member of pg_execute_server_program (4571) is no superuser.
CREATE FUNCTION pgbaton.acts_for(service regrole) RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    me CONSTANT pg_catalog.oid := pgbaton.session_role();
BEGIN
    IF service IS NULL OR service::pg_catalog.oid OPERATOR(pg_catalog.=) me
       OR (pg_catalog.pg_has_role(me, service::pg_catalog.oid, 'MEMBER'::pg_catalog.text)
           AND NOT pg_catalog.pg_has_role(me, 4571::pg_catalog.oid, 'MEMBER'::pg_catalog.text)) THEN
        RETURN true;
    END IF;
    IF pg_catalog.pg_has_role(me, service::pg_catalog.oid, 'MEMBER'::pg_catalog.text)
       AND NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) me) THEN
        RETURN true;
    END IF;
    RETURN NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.oid OPERATOR(pg_catalog.=) service::pg_catalog.oid)
        OR pgbaton.operates();
END;
$$;

-- Whether the session may do what concerns everybody: it owns the schema, or was made an operator. Not while it maintains
-- a table: an index calls the functions of the table's owner, and the session may be autovacuum's, a superuser's.
CREATE FUNCTION pgbaton.operates() RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN (EXISTS (SELECT FROM pg_namespace AS n
                     WHERE n.nspname = 'pgbaton' AND pg_has_role(pgbaton.session_role(), n.nspowner, 'MEMBER'))
            OR EXISTS (SELECT FROM pgbaton.grantee AS g
                        WHERE g.operator AND pg_has_role(pgbaton.session_role(), g.role::oid, 'MEMBER')))
        AND NOT EXISTS (SELECT FROM pg_stat_progress_analyze AS p WHERE p.pid = pg_backend_pid())
        AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum AS p WHERE p.pid = pg_backend_pid())
        AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS p WHERE p.pid = pg_backend_pid())
        AND NOT EXISTS (SELECT FROM pg_stat_progress_cluster AS p WHERE p.pid = pg_backend_pid());
END;
$$;

-- The service that what the session makes belongs to: the grantee that its role is or, by the name's order the first,
-- is a member of; else nobody (NULL) where PUBLIC is one, else the role itself. A superuser is a member of every role, and
-- acts for itself.
CREATE FUNCTION pgbaton.service() RETURNS regrole
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    me    CONSTANT oid := pgbaton.session_role();
    found regrole;
BEGIN
    SELECT g.role INTO found FROM pgbaton.grantee AS g JOIN pg_roles AS r ON r.oid = g.role::oid
     WHERE NOT g.operator AND pg_has_role(me, r.oid, 'MEMBER')
       AND NOT (SELECT s.rolsuper FROM pg_roles AS s WHERE s.oid = me)
     ORDER BY r.oid <> me,
              -- a group that was made a member of another service goes before that
              (SELECT count(*) FROM pgbaton.grantee AS o WHERE NOT o.operator AND pg_has_role(r.oid, o.role::oid, 'MEMBER')) DESC,
              r.rolname LIMIT 1;
    IF found IS NULL AND NOT EXISTS (SELECT FROM pgbaton.grantee AS g WHERE g.role = 0::oid::regrole) THEN
        found := me::regrole;
    END IF;
    RETURN found;
END;
$$;

-- Roles that may use the schema already are services from now on, so that what they make while the migrations behind this one
-- have not run yet belongs to the group and not to a login.
INSERT INTO pgbaton.grantee (role, operator)
SELECT DISTINCT a.grantee::pg_catalog.regrole, false
  FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS a
 WHERE n.nspname = 'pgbaton' AND a.privilege_type = 'USAGE' AND a.grantee <> n.nspowner;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 7, 1;
END;
