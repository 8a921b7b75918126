package pgbaton_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// A key says for people what it was made of.
func TestKey_String(t *testing.T) {
	t.Parallel()
	for want, key := range map[string]pgbaton.Key{
		`"a"`:                 pgbaton.Name("a"),
		`"gr\xffße"`:          pgbaton.Name("gr\xffße"),
		"id:-1":               pgbaton.ID(-1),
		"id:0":                pgbaton.ID(0),
		"pair:-2147483648,-1": pgbaton.Pair(math.MinInt32, -1),
		"pair:0,7":            pgbaton.Pair(0, 7),
		"invalid key":         {},
	} {
		require.Equal(t, want, key.String())
	}
	require.NotEqual(t, pgbaton.ID(7), pgbaton.Pair(0, 7))
}
