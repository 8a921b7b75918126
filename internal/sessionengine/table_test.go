package sessionengine

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// A client that holds a sixteenth of the lock table looks once a TTL, and is refused while the last look found it too full.
func TestLockTable(t *testing.T) {
	t.Parallel()
	table := &lockTable{lookEvery: time.Second}
	table.size.Store(160)
	found := func(used uint64) error {
		return (*look)(table).Row([][]byte{binary.BigEndian.AppendUint64(nil, used)})
	}
	now := time.Now()
	due, err := table.pressure(9, now)
	require.False(t, due)
	require.NoError(t, err)
	due, err = table.pressure(10, now)
	require.True(t, due)
	require.NoError(t, err)
	require.NoError(t, found(112))
	due, err = table.pressure(10, now.Add(time.Second-1))
	require.False(t, due, "it looks once a TTL")
	require.ErrorIs(t, err, lockerr.TooManyLocks)
	require.ErrorContains(t, err, "70 % full (112 of about 160)")
	due, err = table.pressure(10, now.Add(time.Second))
	require.True(t, due)
	require.ErrorIs(t, err, lockerr.TooManyLocks, "until the answer comes")
	require.NoError(t, found(111))
	_, err = table.pressure(10, now.Add(time.Second))
	require.NoError(t, err)
	require.NoError(t, found(160))
	_, err = table.pressure(9, now)
	require.NoError(t, err, "it holds less")
	_, err = table.pressure(10, now)
	require.NoError(t, err, "what was found is forgotten")
	require.ErrorIs(t, (*look)(table).Row([][]byte{nil}), pipeline.ErrProtocol)
}
