-- Named one by one and without CASCADE: what somebody else put into the schema, or built on it, is
-- not dropped but named in the error.
DROP FUNCTION pgbaton.lock_for_transaction(bigint, boolean, boolean, integer);
DROP FUNCTION pgbaton.wait_for_turn(bigint, boolean, boolean, bigint, boolean, boolean, integer);
DROP FUNCTION pgbaton.next_token();
DROP FUNCTION pgbaton.repair_tokens();
DROP FUNCTION pgbaton.tokens_trusted();
DROP TABLE pgbaton.incarnation;
DROP SEQUENCE pgbaton.token;
DROP FUNCTION pgbaton.gate(integer, integer);
DROP FUNCTION pgbaton.gate(bigint);
DROP FUNCTION pgbaton.key(text);
DROP FUNCTION pgbaton.schema_version();
DROP SCHEMA pgbaton;
