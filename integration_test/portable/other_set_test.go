package portable

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A database keeps the set that it has, also where the server could run the other, and a server that cannot run the one that is there says so.
func TestMigrate_KeepsTheSet(t *testing.T) {
	t.Parallel()
	dsn, admin := migrated(t, false)
	testkit.Run(t, admin, "CREATE EXTENSION plpgsql; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pg_catalog TO PUBLIC")
	require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
	require.True(t, testkit.Value[bool](t, testkit.Connect(t, admin), "SELECT to_regclass('pgbaton.token') IS NULL"))
	_, err := pgbaton.Open(t.Context(), dsn, &pgbaton.Config{Engine: pgbaton.EngineSession})
	require.ErrorIs(t, err, pgbaton.ErrUnsupportedServer)
	require.ErrorContains(t, err, "EngineAuto or EngineLease")

	full := testkit.Migrated(t)
	testkit.Run(t, full, "ALTER FUNCTION pg_catalog.pg_advisory_xact_lock(bigint) RENAME TO pg_advisory_gone_lock")
	err = pgbaton.Migrate(t.Context(), full)
	require.ErrorIs(t, err, pgbaton.ErrSchema)
	require.ErrorContains(t, err, "this server cannot run it")
}

// A role that may use the schema needs no more, and one that may not is told what it needs.
func TestRoles(t *testing.T) {
	t.Parallel()
	role := testkit.Role(t)
	_, admin := migrated(t, false)
	service := testkit.As(t, admin, role)
	_, err := pgbaton.Open(t.Context(), service, nil)
	require.ErrorIs(t, err, pgbaton.ErrSchema)
	require.ErrorContains(t, err, "GRANT USAGE ON SCHEMA pgbaton")
	testkit.Run(t, admin, "GRANT USAGE ON SCHEMA pgbaton TO "+role)
	client, err := pgbaton.Open(t.Context(), service, nil)
	require.NoError(t, err)
	lock, err := client.Acquire(t.Context(), pgbaton.Name("k"))
	require.NoError(t, err)
	require.NoError(t, lock.Release(t.Context()))
	require.NoError(t, client.Close(t.Context()))
}
