-- Forgets who leads and when jobs have run last: each job may run again at once.
DROP FUNCTION pgbaton.begin_run(text, interval, bigint);
DROP TABLE pgbaton.last_run;
DROP FUNCTION pgbaton.request_resign(text);
DROP FUNCTION pgbaton.leader_of(text);
DROP FUNCTION pgbaton.strike_leaders(text[], bigint[]);
DROP FUNCTION pgbaton.keep_leaders(text[], bigint[], bigint, text);
DROP TABLE pgbaton.leader;

CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT 4, 1;
END;
