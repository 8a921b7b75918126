package pgtext_test

import (
	"context"
	"math"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestArrays(t *testing.T) {
	t.Parallel()
	for _, numbers := range [][]int64{nil, {1}, {-1, 0, math.MinInt64, math.MaxInt64}} {
		back, err := pgtext.ParseInts[int64](pgtext.Ints(numbers))
		require.NoError(t, err)
		require.Equal(t, numbers, back)
	}
	for _, bools := range [][]bool{nil, {true}, {false, true}} {
		back, err := pgtext.ParseBools(pgtext.Bools(bools))
		require.NoError(t, err)
		require.Equal(t, bools, back)
	}
	require.Equal(t, "{}", string(pgtext.Ints[int32](nil)))
	require.Equal(t, "{1,-2}", string(pgtext.Ints([]int32{1, -2})))
	require.Equal(t, "{}", string(pgtext.Texts(nil)))
	require.Equal(t, `{"a","b\"c\\","{,}"}`, string(pgtext.Texts([]string{"a", `b"c\`, "{,}"})))
	require.Equal(t, "-7", string(pgtext.Int(-7)))
	require.Equal(t, "true", string(pgtext.Bool(true)))

	none, err := pgtext.ParseInts[int32](nil)
	require.NoError(t, err)
	require.Empty(t, none)
	for _, wrong := range []string{"", "1", "{1", "1}", "{1,x}", "{1,}", "{NULL}", "{4294967296}"} {
		_, err = pgtext.ParseInts[int32]([]byte(wrong))
		require.ErrorIs(t, err, pgtext.ErrAnswer, "%q", wrong)
	}
	_, err = pgtext.ParseBools([]byte("{t,x}"))
	require.ErrorIs(t, err, pgtext.ErrAnswer)
}

// The server reads what is written, and what it writes is read.
func TestArrays_ServerAgrees(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	conn := testkit.Connect(t, testkit.Server(t))
	texts := []string{"", "NULL", "null", `"`, `\`, `{,}`, " a ", "'; --", "\t\n", "Ж"}
	var back []string
	require.NoError(t, conn.QueryRow(ctx, "SELECT $1::text::text[]", string(pgtext.Texts(texts))).Scan(&back))
	require.Equal(t, texts, back)

	var ints, bools, none []byte
	row := conn.QueryRow(ctx, "SELECT $1::text::int8[]::text, $2::text::bool[]::text, $3::text::int8[]::text",
		pgx.QueryExecModeSimpleProtocol, string(pgtext.Ints([]int64{math.MinInt64, 0})),
		string(pgtext.Bools([]bool{true, false})), string(pgtext.Ints[int64](nil)))
	require.NoError(t, row.Scan(&ints, &bools, &none))
	numbers, err := pgtext.ParseInts[int64](ints)
	require.NoError(t, err)
	require.Equal(t, []int64{math.MinInt64, 0}, numbers)
	truths, err := pgtext.ParseBools(bools)
	require.NoError(t, err)
	require.Equal(t, []bool{true, false}, truths)
	empty, err := pgtext.ParseInts[int64](none)
	require.NoError(t, err)
	require.Empty(t, empty)
}
