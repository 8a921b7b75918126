package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// The schema's functions compute what Go computes.
func TestSchema_KeysAndGates(t *testing.T) {
	t.Parallel()
	conn := testkit.Connect(t, testkit.Migrated(t))

	names := []string{"a", "invoice/42", "größe", `\`, `\x00`, "'", " ", "\n", "\u200d", "e\u0301", "\U0010ffff"}
	for range 500 {
		names = append(names, randomName())
	}
	ids := []int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MaxInt32, math.MinInt32}
	for _, name := range names {
		key := Name(name)
		require.NoError(t, key.validate())
		require.Equal(t, key.key.ID, testkit.Value[int64](t, conn, "SELECT pgbaton.key($1)", name), "%q", name)
		ids = append(ids, key.key.ID)
	}
	for _, id := range ids {
		require.Equal(t, ID(id).key.Gate(), testkit.Value[int64](t, conn, "SELECT pgbaton.gate($1::bigint)", id))
		a, b := advisory.Key{ID: id, Pair: true}.Halves()
		require.Equal(t, Pair(a, b).key.Gate(), testkit.Value[int64](t, conn, "SELECT pgbaton.gate($1::int, $2::int)", a, b))
	}
}

// randomName is 1 to 80 random characters of every plane.
func randomName() string {
	runes := []rune{}
	for range 1 + rand.IntN(80) {
		limit := []int{0x80, 0x800, 0x10000, unicode.MaxRune + 1}[rand.IntN(4)]
		r := rune(1 + rand.IntN(limit-1))
		if r >= 0xd800 && r < 0xe000 { // a surrogate is not a character
			r = unicode.ReplacementChar
		}
		runes = append(runes, r)
	}
	return string(runes)
}

// uncomparable is an error whose values cannot be compared.
type uncomparable []string

func (u uncomparable) Error() string { return fmt.Sprint([]string(u)) }

func TestSaysOnly(t *testing.T) {
	t.Parallel()
	cause, broken := fmt.Errorf("%w: by an operator", ErrResigned), errors.New("the last batch was not saved")
	for name, test := range map[string]struct {
		err  error
		only bool
	}{
		"nothing":               {nil, true},
		"the end":               {context.Canceled, true},
		"the cause":             {cause, true},
		"the end, in words":     {fmt.Errorf("work: %w", context.Canceled), true},
		"both":                  {errors.Join(context.Canceled, fmt.Errorf("work: %w", cause)), true},
		"something else":        {broken, false},
		"something else beside": {fmt.Errorf("%w: %w", context.Canceled, broken), false},
		"uncomparable":          {uncomparable{"a"}, false},
		"another end":           {context.DeadlineExceeded, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.only, saysOnly(test.err, context.Canceled, cause))
		})
	}
	require.False(t, saysOnly(uncomparable{"a"}, uncomparable{"a"}))
}
