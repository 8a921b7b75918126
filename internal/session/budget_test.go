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
		require.False(t, b.Take(Waiting), "one place is kept for a link")
		require.True(t, b.Take(Link))
		require.False(t, b.Take(Link))
		require.True(t, b.Crowded(), "a link wants a place")
		b.Give(Waiting)
		require.False(t, b.Take(Waiting))
		b.Give(Waiting)
		require.False(t, b.Crowded(), "the last one stays")
		b.Give(Waiting)
		require.True(t, b.Take(Waiting), "one place is kept for a waiting session")
		require.False(t, b.Take(Waiting))
		time.Sleep(wish) // the link does not want it any more
		require.True(t, b.Take(Waiting))
		require.False(t, b.Crowded())
		require.True(t, b.Take(Link))
		require.False(t, b.Take(Waiting))
		require.False(t, b.Take(Link))
	})
}
