package migrate

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

// hooked is a pool whose nth connection, from 1, is dialed, and set, in a way of its own.
func hooked(t *testing.T, dsn string, dialed func(n int32, conn net.Conn) net.Conn, set func(n int32, conn *pgx.Conn) error) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	var dials, sets atomic.Int32
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return dialed(dials.Add(1), conn), nil
	}
	config.AfterConnect = func(_ context.Context, conn *pgx.Conn) error { return set(sets.Add(1), conn) }
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// A connection that is lost while Migrate tries out what the server has says nothing about the server: the schema that it would make otherwise is
// the one for a lesser engine.
func TestMigrate_LosesAConnection(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"pg_try_advisory_lock", "pg_try_advisory_xact_lock", "SEQUENCE", "UNLOGGED", "LANGUAGE plpgsql"} {
		for which := int32(1); which <= 2; which++ {
			dsn := testkit.Empty(t)
			pool := hooked(t, dsn, func(n int32, conn net.Conn) net.Conn {
				if n != which {
					return conn
				}
				return &cutAt{conn, text}
			}, func(int32, *pgx.Conn) error { return nil })
			err := pgbaton.Migrate(t.Context(), pool)
			conn := testkit.Connect(t, dsn)
			there := testkit.Value[bool](t, conn, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'pgbaton')")
			lost := err != nil
			if lost {
				require.ErrorContains(t, err, "try out what the server has")
				require.NotContains(t, err.Error(), "nil")
			} else { // the second connection is not asked for this
				require.True(t, testkit.Value[bool](t, conn, "SELECT to_regclass('pgbaton.token') IS NOT NULL"), "%s on %d", text, which)
			}
			require.Equal(t, !lost, there, "%s on %d", text, which)
			require.False(t, which == 1 && !lost, "%s on the first connection", text)
		}
	}
}

// A session that the role's setting ends in a slow moment, before Migrate has lifted it, is made anew.
func TestMigrate_IdleForAMoment(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	watch := testkit.Connect(t, dsn)
	pool := hooked(t, dsn, func(_ int32, conn net.Conn) net.Conn { return conn }, func(n int32, conn *pgx.Conn) error {
		if n > 1 {
			return nil
		}
		pid := int32(conn.PgConn().PID())
		testkit.Exec(t, conn, "SET idle_session_timeout = 1")
		testkit.WaitFor(t, watch, "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid)
		return nil
	})
	require.NoError(t, pgbaton.Migrate(t.Context(), pool))
}
