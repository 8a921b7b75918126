package worker

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// CheckThaw checks the answer to [Guard], what a process was told after it had been frozen: the look before, the
// look after, a try, and the release. granted is the next grant, elsewhere. On a machine that stood still before, for longer than the holder
// was to be trusted, there was nothing left to be frozen with.
func CheckThaw(t *testing.T, steps []Result, granted Result, thawed int64) {
	t.Helper()
	require.Len(t, steps, 4)
	before, look, try, release := steps[0], steps[1], steps[2], steps[3]
	t.Logf("before %+v\nlook %+v\ntry %+v\nrelease %+v\ngranted elsewhere %+v", before, look, try, release, granted)
	require.True(t, before.OK())
	require.Greater(t, granted.At, before.Called, "granted elsewhere while it was certainly held")
	if look.Lost && look.At < thawed {
		t.Log("it was lost before the process was frozen")
		return
	}
	require.GreaterOrEqual(t, look.At, thawed)
	require.True(t, try.NotAcquired, "the key is somebody's: %+v", try)
	if look.OK() {
		require.True(t, release.OK() || release.Lost, release.Err)
		if release.OK() {
			require.Greater(t, granted.At, release.Called, "released as held, but granted elsewhere before")
		}
		return
	}
	require.True(t, look.Lost, look.Err)
	require.True(t, release.Lost, "a lost lock is not released: %+v", release)
}

// CheckHeld checks that a process which was frozen for less than TTL still held what it held: its last sign of life was at
// the most a third of TTL before it was frozen. On a machine that has let it is paused for longer than it was told to,
// nothing can be asked of it.
func CheckHeld(t *testing.T, steps []Result, frozen int64, ttl time.Duration) {
	t.Helper()
	require.Len(t, steps, 4)
	if silent := time.Duration(steps[3].At-frozen) + ttl/3; silent > ttl*8/10 {
		t.Logf("it may have been silent for %v, and TTL is %v", silent, ttl)
		return
	}
	require.True(t, steps[1].OK(), "no reason to lose it: %+v", steps[1])
	require.True(t, steps[3].OK(), steps[3].Err)
}
