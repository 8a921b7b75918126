package client

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// A service with a *sql.DB has a client, which takes nothing from it.
func TestNewSQL(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	db, err := sql.Open("pgx", dsn)
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)

	client, err := pgbaton.New(ctx, db, nil)
	require.NoError(t, err)
	require.Zero(t, db.Stats().InUse)
	require.NoError(t, client.DoSQLTx(ctx, db, pgbaton.Name("x"), nil, func(ctx context.Context, tx *sql.Tx, _ *pgbaton.Lock) error {
		_, err := tx.ExecContext(ctx, "CREATE TABLE t ()")
		return err
	}))
	other := testclient.New(t, dsn, nil)
	lock, err := client.Acquire(ctx, pgbaton.Name("x"))
	require.NoError(t, err)
	_, err = other.TryAcquire(ctx, pgbaton.Name("x"))
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	require.NoError(t, lock.Release(ctx))
	require.NoError(t, client.Close(ctx))
	require.NoError(t, db.PingContext(ctx), "it is the caller's")
}

// connector gives connections of a driver that nobody knows.
type connector struct{ err error }

func (c connector) Connect(context.Context) (driver.Conn, error) { return strangeConn{}, c.err }
func (c connector) Driver() driver.Driver                        { return nil }

type strangeConn struct{ driver.Conn }

func (strangeConn) Close() error { return nil }

func TestNewSQL_Refuses(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	_, err := pgbaton.New(ctx, (*sql.DB)(nil), nil)
	wellSaid(t, err, "is nil")
	strange := sql.OpenDB(connector{})
	defer strange.Close()
	_, err = pgbaton.New(ctx, strange, nil)
	wellSaid(t, err, "strangeConn", "use Open")
	require.Zero(t, strange.Stats().InUse)
	broken := sql.OpenDB(connector{errors.New("no route")})
	defer broken.Close()
	_, err = pgbaton.New(ctx, broken, nil)
	wellSaid(t, err, "no route")
}
