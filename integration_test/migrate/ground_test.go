package migrate_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A pooler in transaction mode is refused, as New refuses it, before anything is done; one in session mode is not.
func TestMigrate_Pooler(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			through := lab.PgBouncer(t, dsn, mode)
			for range 3 {
				err := pgbaton.Migrate(t.Context(), through)
				if mode == "session" {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, pgbaton.ErrPooler)
				require.ErrorContains(t, err, "pgbaton: migrate: connection goes through a pooler: it is in transaction mode")
				require.False(t, testkit.Value[bool](t, testkit.Connect(t, dsn), "SELECT to_regnamespace('pgbaton') IS NOT NULL"))
			}
			if mode == "session" {
				require.Equal(t, rightCatalog(t), catalog(t, dsn))
				// What is set for migrating is not left behind on the pooler's sessions.
				var errs []error
				for range 8 {
					conn := testkit.Connect(t, through)
					if testkit.Value[string](t, conn, "SHOW search_path") != `"$user", public` {
						errs = append(errs, errors.New("search_path is left behind"))
					}
					require.NoError(t, conn.Close(t.Context()))
				}
				require.NoError(t, errors.Join(errs...))
			}
		})
	}
}

// A standby is named as such.
func TestMigrate_Standby(t *testing.T) {
	t.Parallel()
	server := lab.OwnServer(t, nil)
	require.NoError(t, pgbaton.Migrate(t.Context(), server.URL()))
	// Recovery of its own log, without a primary, is a standby as any other.
	require.NoError(t, exec.CommandContext(t.Context(), "touch", filepath.Join(server.DataDir(), "standby.signal")).Run())
	require.NoError(t, server.Restart(t.Context(), "fast"))
	err := pgbaton.Migrate(t.Context(), server.URL())
	require.ErrorIs(t, err, pgbaton.ErrStandby)
	require.ErrorContains(t, err, "pgbaton: migrate: the server is a standby: connect to the primary")
}
