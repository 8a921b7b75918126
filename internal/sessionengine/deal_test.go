package sessionengine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/engine"
)

func all(tokens engine.Tokens) []int64 {
	var list []int64
	for token, ok := tokens.Next(); ok; token, ok = tokens.Next() {
		list = append(list, token)
	}
	return list
}

func from(first int64, count int) []int64 {
	var list []int64
	for i := range count {
		list = append(list, first+int64(i))
	}
	return list
}

// Tokens are dealt in the order of the draws, without a gap within one deal, and the last deal gets what is left behind it.
func TestDealer(t *testing.T) {
	t.Parallel()
	d := dealer{draws: []int64{64, 96, 320}} // another session drew 128 … 319
	require.Equal(t, from(64, 1), all(d.tokens(1)))
	require.Equal(t, from(65, 40), all(d.tokens(40)), "over the edge of a draw that follows")
	cut := d.tokens(60)
	require.Equal(t, from(105, 23), all(cut), "not over a gap")
	last := d.tokens(2)
	d.extend(&last)
	require.Equal(t, from(320, 32), all(last))

	d = dealer{draws: []int64{64, 96}}
	last = d.tokens(32)
	d.extend(&last)
	require.Equal(t, from(64, 32), all(last), "nothing is left in its draw")

	d = dealer{draws: []int64{64, 96}}
	last = d.tokens(1)
	d.extend(&last)
	require.Equal(t, from(64, 64), all(last))
	require.Empty(t, all((&dealer{}).tokens(1)))
}
