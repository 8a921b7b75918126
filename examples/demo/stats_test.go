package demo

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	upTo := func(n int) []time.Duration {
		var durations []time.Duration
		for i := n; i > 0; i-- {
			durations = append(durations, time.Duration(i))
		}
		return durations
	}

	for name, tt := range map[string]struct {
		durations []time.Duration
		want      summary
	}{
		"Nothing":  {nil, summary{}},
		"One":      {upTo(1), summary{average: 1, p99: 1, longest: 1}},
		"Ten":      {upTo(10), summary{average: 5, p99: 10, longest: 10}},
		"Hundred":  {upTo(100), summary{average: 50, p99: 99, longest: 100}},
		"Thousand": {upTo(1000), summary{average: 500, p99: 990, longest: 1000}},
		"Rounding": {upTo(101), summary{average: 51, p99: 100, longest: 101}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, summarize(tt.durations))
		})
	}
}

func TestPerSecond(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 250, perSecond(500, 2*time.Second), 1e-9)
	require.Zero(t, perSecond(500, 0))
}

func TestLostUpdates(t *testing.T) {
	t.Parallel()
	require.Equal(t, 0, lostUpdates(10, 10, 0))
	require.Equal(t, 3, lostUpdates(10, 7, 0))
	require.Equal(t, -1, lostUpdates(10, 11, 0), "a surplus without an error is wrong too")
	require.Equal(t, 0, lostUpdates(10, 11, 1), "an update that ended in an error may have been done")
	require.Equal(t, 3, lostUpdates(10, 7, 1))
}
