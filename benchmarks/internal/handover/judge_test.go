package handover

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		capacity int
		grants   []Grant
		idle     Spread
		fails    bool
	}{
		"one waits":             {1, []Grant{{0, 1, 10}, {5, 13, 20}}, Spread{3}, false},
		"nobody waits":          {1, []Grant{{0, 1, 10}, {12, 13, 20}}, nil, false},
		"a passer-by is first":  {1, []Grant{{0, 1, 10}, {12, 14, 20}, {5, 30, 40}}, Spread{4, 10}, false},
		"two of two, one waits": {2, []Grant{{0, 1, 10}, {0, 2, 20}, {5, 16, 30}}, Spread{6}, false},
		"two at once":           {1, []Grant{{0, 1, 10}, {5, 9, 20}}, nil, true},
	} {
		got, err := judge(c.grants, c.capacity)
		require.Equal(t, c.fails, err != nil, name)
		require.Equal(t, c.idle, got.Idle, name)
	}
}
