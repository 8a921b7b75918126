package semaphores

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A change of capacity needs all rows. It waits for one that somebody has locked for longer than the client's
// sessions wait for locks, does not hold up others meanwhile, and ends with its context.
func TestResize_WaitsForRows(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	s, other := create(t, dsn, "s", 4), create(t, dsn, "s", 4)
	locker := testkit.Connect(t, dsn)
	testkit.Exec(t, locker, "BEGIN")
	testkit.Exec(t, locker, "SELECT FROM pgbaton.slot WHERE slot = 4 FOR UPDATE")

	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := s.Resize(short, 6)
	require.ErrorIs(t, err, context.DeadlineExceeded)

	resized := make(chan error, 1)
	go func() { resized <- s.Resize(context.Background(), 6) }()
	var waits []int64
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		began := time.Now()
		permit, err := other.Acquire(context.Background(), 1)
		require.NoError(t, err)
		require.NoError(t, permit.Release(context.Background()))
		waits = append(waits, int64(time.Since(began)))
	}
	lab.Report(t, "a permit beside a change of capacity that waits", lab.NewSpread(waits), time.Second)
	require.Empty(t, resized)
	testkit.Exec(t, locker, "COMMIT")
	require.NoError(t, <-resized)
	requireWhole(t, s, 6)
	_, err = other.Acquire(context.Background(), 7)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)
}
