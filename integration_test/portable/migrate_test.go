package portable

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// migrated makes a database with the portable schema. It returns its URLs: as a service reaches it, and as an operator does.
func migrated(t *testing.T, stubs bool) (service, admin string) {
	t.Helper()
	owner, admin := testkit.Poor(t, stubs)
	require.NoError(t, pgbaton.Migrate(t.Context(), owner))
	return owner, admin
}

// Where the full set cannot run, Migrate takes the portable one and says why; so does Diagnose. Many may migrate at the same time.
func TestMigrate_Chooses(t *testing.T) {
	t.Parallel()
	for name, stubs := range map[string]bool{"Revoked": false, "Stubs": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn, admin := testkit.Poor(t, stubs)
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					if err := pgbaton.Migrate(t.Context(), dsn); err != nil {
						t.Error(err)
					}
				})
			}
			group.Wait()
			require.NoError(t, pgbaton.Migrate(t.Context(), dsn), "again")
			conn := testkit.Connect(t, admin)
			reason := testkit.Value[string](t, conn, "SELECT reason FROM pgbaton.portable")
			require.Contains(t, reason, "the language plpgsql")
			require.Contains(t, reason, "advisory locks of sessions")
			require.Contains(t, reason, "advisory locks of transactions")
			require.NotContains(t, reason, "sequences")
			require.NotContains(t, reason, "UNLOGGED")
			require.Zero(t, testkit.Value[int](t, conn, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgbaton_probe%'"))

			client := testclient.New(t, dsn, nil)
			found, err := client.Diagnose(t.Context())
			require.NoError(t, err)
			require.True(t, found.Portable)
			require.Equal(t, "lease", found.Engine)
			require.ErrorIs(t, found.NoSession, pgbaton.ErrUnsupportedServer)
			require.ErrorContains(t, found.NoSession, reason)
		})
	}
}
