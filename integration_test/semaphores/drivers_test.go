package semaphores

import (
	"database/sql"
	"net/url"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // pgx
	_ "github.com/lib/pq"              // postgres
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
)

// A permit of several slots is asserted in the transactions of every driver.
func TestDrivers_AssertPermit(t *testing.T) { //nolint:tparallel // its parts share a permit
	t.Parallel()
	dsn := lab.Database(t)
	s := create(t, dsn, "s", 4)
	permit, err := s.Acquire(t.Context(), 3)
	require.NoError(t, err)
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	query := u.Query()
	query.Set("sslmode", "disable") // the test servers have no TLS, which lib/pq would insist on
	u.RawQuery = query.Encode()
	for _, driver := range []string{"pgx", "postgres"} {
		t.Run(driver, func(t *testing.T) {
			db, err := sql.Open(driver, u.String())
			require.NoError(t, err)
			defer db.Close()
			tx, err := db.BeginTx(t.Context(), nil)
			require.NoError(t, err)
			require.NoError(t, permit.Assert(t.Context(), pgbaton.SQLTx(tx)))
			require.NoError(t, tx.Rollback())
		})
	}
	require.NoError(t, permit.Release(t.Context()))
	for _, driver := range []string{"pgx", "postgres"} {
		db, err := sql.Open(driver, u.String())
		require.NoError(t, err)
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		require.ErrorIs(t, permit.Assert(t.Context(), pgbaton.SQLTx(tx)), pgbaton.ErrNotHeld)
		require.NoError(t, tx.Rollback())
		require.NoError(t, db.Close())
	}
}
