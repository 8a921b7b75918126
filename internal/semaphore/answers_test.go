package semaphore

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/sidecar"
)

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
	require.ErrorIs(t, err, pgtext.ErrAnswer)
	_, err = parseRenewed(&sidecar.Op{})
	require.ErrorIs(t, err, pgtext.ErrAnswer)
}
