package history

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// permit is a grant with a claim of its own.
func permit(n int, called, got, end, over int64) *Grant {
	return &Grant{Process: 1, Key: "s", N: n, Token: 32 * (100*got + called), Called: called, Got: got, End: end, Over: over}
}

func TestPermits(t *testing.T) {
	t.Parallel()
	killed := permit(2, 0, 1, 12, never)
	killed.Lost = true
	lost := permit(2, 0, 1, 12, 12)
	lost.Lost = true
	passed := permit(2, 5, 9, 12, 13)
	passed.Token = permit(2, 0, 1, 9, 9).Token + 1
	three := []Resize{{Capacity: 3}}
	for name, c := range map[string]struct {
		grants   []*Grant
		resizes  []Resize
		peak     int
		overlaps []int64
		fails    bool
	}{
		"full":                            {grants: []*Grant{permit(2, 0, 1, 9, 10), permit(1, 0, 2, 9, 10), permit(3, 0, 9, 10, 11)}, resizes: three, peak: 3},
		"one too many":                    {grants: []*Grant{permit(2, 0, 1, 9, 10), permit(2, 0, 8, 9, 10)}, resizes: three, fails: true},
		"one too many of a killed holder": {grants: []*Grant{killed, permit(2, 0, 11, 13, 14)}, resizes: three, fails: true},
		"after a kill":                    {grants: []*Grant{killed, permit(2, 0, 12, 13, 14)}, resizes: three, peak: 2},
		"told late":                       {grants: []*Grant{lost, permit(2, 0, 11, 13, 14)}, resizes: three, peak: 2, overlaps: []int64{1}},
		"grown meanwhile": {
			grants:  []*Grant{permit(2, 0, 1, 9, 10), permit(2, 2, 8, 9, 10)},
			resizes: []Resize{{Capacity: 3}, {Called: 6, Done: 7, Capacity: 4}}, peak: 4,
		},
		"grown too late": {
			grants:  []*Grant{permit(2, 0, 1, 9, 10), permit(2, 2, 8, 9, 10)},
			resizes: []Resize{{Capacity: 3}, {Called: 9, Done: 10, Capacity: 4}}, fails: true,
		},
		"shrunk before it was asked for": {
			grants:  []*Grant{permit(2, 0, 1, 9, 10), permit(1, 5, 8, 9, 10)},
			resizes: []Resize{{Capacity: 3}, {Called: 3, Done: 4, Capacity: 2}}, fails: true,
		},
		"shrunk before a hand-over": {
			grants:  []*Grant{permit(2, 0, 1, 9, 9), permit(1, 0, 2, 20, 21), passed},
			resizes: []Resize{{Capacity: 3}, {Called: 3, Done: 4, Capacity: 2}}, peak: 3,
		},
		"shrunk while it waited": {
			grants:  []*Grant{permit(2, 0, 1, 9, 10), permit(1, 3, 8, 9, 10)},
			resizes: []Resize{{Capacity: 3}, {Called: 3, Done: 4, Capacity: 2}}, peak: 3,
		},
	} {
		peak, overlaps, err := Permits(c.grants, c.resizes)
		if c.fails {
			require.Error(t, err, name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, c.peak, peak, name)
		require.Equal(t, c.overlaps, overlaps, name)
	}
}
