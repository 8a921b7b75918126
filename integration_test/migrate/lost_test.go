package migrate_test

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// cutAt is a connection that is lost when something is sent.
type cutAt struct {
	net.Conn

	text string
}

func (c *cutAt) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(c.text)) {
		_ = c.Close()
	}
	return c.Conn.Write(b)
}

// cutAtNth has a pool's nth connection, from 1, lost when something is sent on it.
func cutAtNth(nth int32, text string) func(config *pgxpool.Config) {
	return func(config *pgxpool.Config) {
		var dials atomic.Int32
		dial := config.ConnConfig.DialFunc
		config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil || dials.Add(1) != nth {
				return conn, err
			}
			return &cutAt{conn, text}, nil
		}
	}
}

// A connection that is lost while Migrate tries out what the server has says nothing about the server: the schema that it would make otherwise is
// the one for a lesser engine.
func TestMigrate_LosesAConnection(t *testing.T) {
	t.Parallel()
	for which, texts := range map[int32][]string{1: {"pg_try_advisory_lock", "LANGUAGE plpgsql"}, 2: {"pg_try_advisory_xact_lock"}} {
		for _, text := range texts {
			dsn := testkit.Empty(t)
			pool := hooked(t, dsn, cutAtNth(which, text))
			err := pgbaton.Migrate(t.Context(), pool)
			require.ErrorContains(t, err, "try out what the server has", text)
			require.NotContains(t, err.Error(), "nil")
			require.False(t, testkit.Value[bool](t, testkit.Connect(t, dsn), "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'pgbaton')"))
		}
	}
}

// A session that the role's setting ends in a slow moment, before Migrate has lifted it, is made anew.
func TestMigrate_IdleForAMoment(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	watch := testkit.Connect(t, dsn)
	var made atomic.Int32
	pool := hooked(t, dsn, func(config *pgxpool.Config) {
		config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
			if made.Add(1) > 1 {
				return nil
			}
			pid := int32(conn.PgConn().PID())
			testkit.Exec(t, conn, "SET idle_session_timeout = 1")
			testkit.WaitFor(t, watch, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)
			return nil
		}
	})
	require.NoError(t, pgbaton.Migrate(t.Context(), pool))
}
