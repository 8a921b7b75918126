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

// From the first use on the ledger has a place, whatever links come and go.
func TestBudget_Ledger(t *testing.T) {
	t.Parallel()
	b := NewBudget(4)
	require.True(t, b.Take(Link))
	require.True(t, b.Take(Link))
	require.True(t, b.Take(Ledger))
	b.Give(Ledger) // its session was lost
	require.False(t, b.Take(Link), "that place is its own")
	require.True(t, b.Take(Waiting))
	require.True(t, b.Take(Ledger))
	require.False(t, b.Lasting())

	b = NewBudget(4)
	for range 3 {
		require.True(t, b.Take(Link))
	}
	require.False(t, b.Take(Ledger))
	require.True(t, b.Lasting(), "links do not leave for it")

	b = NewBudget(3)
	require.True(t, b.Take(Link))
	require.True(t, b.Take(Waiting))
	require.True(t, b.Take(Waiting))
	require.False(t, b.Take(Ledger))
	require.False(t, b.Lasting(), "waiting sessions do")
	b.Give(Waiting)
	require.True(t, b.Take(Ledger))

	require.True(t, NewBudget(2).Lasting())
}
