package permit

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/sidecar"
)

func TestArrays(t *testing.T) {
	t.Parallel()
	for _, numbers := range [][]int64{nil, {1}, {-1, 0, 1 << 62}} {
		text := array(numbers)
		back, err := parseArray[int64](text)
		require.NoError(t, err)
		require.Equal(t, numbers, back, "%s", text)
	}
	require.Equal(t, "{}", string(array[int32](nil)))
	require.Equal(t, "{1,2}", string(array([]int32{1, 2})))
	none, err := parseArray[int32](nil)
	require.NoError(t, err)
	require.Empty(t, none)
	_, err = parseArray[int32]([]byte("{1,x}"))
	require.ErrorIs(t, err, errAnswer)
}

func TestParseClaim(t *testing.T) {
	t.Parallel()
	row := func(columns ...string) [][][]byte {
		var row [][]byte
		for _, c := range columns {
			if c == "NULL" {
				row = append(row, nil)
			} else {
				row = append(row, []byte(c))
			}
		}
		return [][][]byte{row}
	}
	got, err := parseClaim(row("8", "2", "{3,4,5}", "96"))
	require.NoError(t, err)
	require.Equal(t, claimAnswer{capacity: 8, granted: 2, slots: []int32{3, 4, 5}, token: 96}, got)
	got, err = parseClaim(row("8", "0", "NULL", "NULL"))
	require.NoError(t, err)
	require.Equal(t, claimAnswer{capacity: 8}, got)
	got, err = parseClaim(row("NULL", "NULL", "NULL", "NULL"))
	require.NoError(t, err)
	require.Zero(t, got, "there is no such semaphore")
	for _, rows := range [][][][]byte{nil, row("8"), row("x", "1", "{1}", "1"), row("8", "1", "{x}", "1"), row("8", "1", "{1}", "NULL")} {
		_, err := parseClaim(rows)
		require.Error(t, err, "%s", rows)
	}
}

func TestParsePlaces(t *testing.T) {
	t.Parallel()
	freed, err := parseFreed(&sidecar.Op{Rows: [][][]byte{{[]byte("{1,3}"), []byte("{-5}")}}})
	require.NoError(t, err)
	require.Equal(t, freedAnswer{places: map[int32]struct{}{1: {}, 3: {}}, awaited: []int64{-5}}, freed)
	renewed, err := parseRenewed(&sidecar.Op{Rows: [][][]byte{{nil}}})
	require.NoError(t, err)
	require.Empty(t, renewed)

	away := errors.New("away")
	_, err = parseFreed(&sidecar.Op{Err: away})
	require.ErrorIs(t, err, away)
	_, err = parseRenewed(&sidecar.Op{Err: away})
	require.ErrorIs(t, err, away)
	_, err = parseFreed(&sidecar.Op{})
	require.ErrorIs(t, err, errAnswer)
	_, err = parseRenewed(&sidecar.Op{})
	require.ErrorIs(t, err, errAnswer)
}
