package client

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// A key says for people what it was made of.
func TestKey_Parts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key  pgbaton.Key
		name string
		id   int64
		pair bool
	}{
		{pgbaton.Name("a"), "a", 2167400190551539809, false},
		{pgbaton.ID(-1), "", -1, false},
		{pgbaton.ID(0), "", 0, false},
		{pgbaton.Pair(math.MinInt32, -1), "", math.MinInt32<<32 | math.MaxUint32, true},
		{pgbaton.Pair(0, 7), "", 7, true},
		{},
	} {
		name, id, pair := c.key.Parts()
		require.Equal(t, []any{c.name, c.id, c.pair}, []any{name, id, pair}, c.key.String())
	}
	_, id, _ := pgbaton.Pair(math.MinInt32, -1).Parts()
	require.Equal(t, []int32{math.MinInt32, -1}, []int32{int32(id >> 32), int32(id)}) //nolint:gosec // the halves
}

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
