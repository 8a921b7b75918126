package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(4)
		for range 3 {
			require.True(t, b.Take(Waiting))
		}
		require.False(t, b.Take(Waiting), "one place is kept for locks")
		require.True(t, b.Take(Holding))
		require.False(t, b.Take(Holding))
		require.True(t, b.Crowded(), "a session for locks wants a place")
		b.Give(Waiting)
		require.False(t, b.Take(Waiting))
		b.Give(Waiting)
		require.False(t, b.Crowded(), "the last one stays")
		b.Give(Waiting)
		require.True(t, b.Take(Waiting), "one place is kept for a waiting session")
		require.False(t, b.Take(Waiting))
		time.Sleep(wish) // it is no longer wanted
		require.True(t, b.Take(Waiting))
		require.False(t, b.Crowded())
		require.True(t, b.Take(Holding))
		require.False(t, b.Take(Waiting))
		require.False(t, b.Take(Holding))
	})
}

// From the first use on the sidecar has a place, whatever sessions for locks come and go.
func TestBudget_Sidecar(t *testing.T) {
	t.Parallel()
	b := NewBudget(4)
	require.True(t, b.Take(Holding))
	require.True(t, b.Take(Holding))
	require.True(t, b.Take(Sidecar))
	b.Give(Sidecar) // its session was lost
	require.False(t, b.Take(Holding), "that place is its own")
	require.True(t, b.Take(Waiting))
	require.True(t, b.Take(Sidecar))
	require.False(t, b.Lasting())

	b = NewBudget(4)
	for range 3 {
		require.True(t, b.Take(Holding))
	}
	require.False(t, b.Take(Sidecar))
	require.True(t, b.Lasting(), "sessions for locks do not leave for it")

	b = NewBudget(3)
	require.True(t, b.Take(Holding))
	require.True(t, b.Take(Waiting))
	require.True(t, b.Take(Waiting))
	require.False(t, b.Take(Sidecar))
	require.False(t, b.Lasting(), "waiting sessions do")
	b.Give(Waiting)
	require.True(t, b.Take(Sidecar))

	require.True(t, NewBudget(2).Lasting())
}
