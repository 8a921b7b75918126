package pgbaton_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// A key gives back what it was made of, and only that.
func TestKey_Parts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		key    pgbaton.Key
		name   string
		named  bool
		id     int64
		single bool
		a, b   int32
		pair   bool
	}{
		{key: pgbaton.Name("a"), name: "a", named: true, id: 2167400190551539809, single: true},
		{key: pgbaton.ID(-1), id: -1, single: true},
		{key: pgbaton.ID(0), single: true},
		{key: pgbaton.Pair(math.MinInt32, -1), a: math.MinInt32, b: -1, pair: true},
		{key: pgbaton.Pair(0, 7), b: 7, pair: true},
		{},
	} {
		name, named := c.key.Name()
		id, single := c.key.ID()
		a, b, pair := c.key.Pair()
		require.Equal(t, []any{c.name, c.named, c.id, c.single, c.a, c.b, c.pair}, []any{name, named, id, single, a, b, pair}, c.key.String())
	}
}
