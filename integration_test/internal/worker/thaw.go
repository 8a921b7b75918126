package worker

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// CheckThaw checks the answer to [Guard], what a process was told after it had been frozen: the look before, the
// look after, a try, and the release. granted is the next grant, elsewhere.
func CheckThaw(t *testing.T, steps []Result, granted Result, thawed int64) {
	t.Helper()
	require.Len(t, steps, 4)
	before, look, try, release := steps[0], steps[1], steps[2], steps[3]
	t.Logf("before %+v\nlook %+v\ntry %+v\nrelease %+v\ngranted elsewhere %+v", before, look, try, release, granted)
	require.True(t, before.OK())
	require.Greater(t, granted.At, before.Called, "granted elsewhere while it was certainly held")
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
