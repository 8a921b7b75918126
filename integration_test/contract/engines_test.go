package contract

import (
	"context"
	"crypto/rand"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
)

// foreignDatabase makes a migrated database on a user's own server: a URL, or a Docker image that is run as the official ones of
// PostgreSQL are.
func foreignDatabase(t *testing.T, server string) string {
	t.Helper()
	if !strings.Contains(server, "://") {
		server = lab.Image(t, server).URL()
	}
	name := "pgbaton_contract_" + strings.ToLower(rand.Text()[:10])
	run := func(sql string) error {
		conn, err := pgx.Connect(context.Background(), server)
		if err != nil {
			return err
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(context.Background(), sql, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	require.NoError(t, run("CREATE DATABASE "+name))
	t.Cleanup(func() {
		if err := run("DROP DATABASE " + name); err != nil { // some engines take long to forget a session
			t.Logf("the database %s is left: %v", name, err)
		}
	})
	u, err := url.Parse(server)
	require.NoError(t, err)
	u.Path = "/" + name
	require.NoError(t, pgbaton.Migrate(t.Context(), u.String()))
	return u.String()
}

// Where the role may not call the session's advisory functions, New says which, and how to grant them.
func TestGround_Revoked(t *testing.T) {
	t.Parallel()
	dsn, _ := revoked(t)
	_, err := pgbaton.Open(t.Context(), dsn, nil)
	require.ErrorIs(t, err, pgbaton.ErrSchema)
	require.ErrorContains(t, err, "pg_catalog.pg_advisory_lock(bigint)")
	require.ErrorContains(t, err, "GRANT EXECUTE ON FUNCTION pg_catalog.")
}
