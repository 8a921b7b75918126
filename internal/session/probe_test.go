package session

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/dbtest"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// A session that is asked in place of a second one is granted the key again, as by an engine whose locks do
// nothing; and one that is asked in place of two is, in a transaction, what a pooler makes of them.
func TestProbe(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Migrated(t)
	ctx := context.Background()
	one, two := dbtest.Connect(t, dsn).PgConn(), dbtest.Connect(t, dsn).PgConn()

	require.NoError(t, probePooler(ctx, one, two))
	require.NoError(t, probeLocks(ctx, one, two))
	left := dbtest.Value[int64](t, dbtest.Connect(t, dsn),
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = ANY($1)", []int32{int32(one.PID()), int32(two.PID())}) //nolint:gosec // pids
	require.Zero(t, left)

	err := probeLocks(ctx, one, one)
	require.ErrorIs(t, err, lockerr.UnsupportedServer)
	require.ErrorContains(t, err, "grants one key to two sessions")
	err = probePooler(ctx, one, one)
	require.ErrorIs(t, err, lockerr.Pooler)
}
