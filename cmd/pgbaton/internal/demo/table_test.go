package demo

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWriteTable(t *testing.T) {
	t.Parallel()
	out := table([]row{
		{
			title: "1 no lock", mutations: 4812, lost: 3566, elapsed: 5 * time.Second,
			times: summary{average: 4140 * time.Microsecond, p99: 9930 * time.Microsecond},
		},
		{
			title: "3 readers, locks", mutations: 11, reads: 1234567, torn: 0, errors: 2, elapsed: 2 * time.Second,
			times: summary{average: 123456 * time.Microsecond, p99: 12 * time.Second},
		},
	})
	require.Equal(t, strings.TrimPrefix(`
                  mutations   lost      reads  torn  errors  average      p99  per s
------------------------------------------------------------------------------------
1 no lock             4,812  3,566          -     -       0  4.14 ms  9.93 ms    962
3 readers, locks         11      0  1,234,567     0       2   123 ms   12.0 s    5.5
`, "\n"), out)
}

func TestWriteTable_FitsIntoAHundredColumns(t *testing.T) {
	t.Parallel()
	const many = 9_999_999
	var rows []row
	for _, title := range []string{titleWithoutLock, titleWithLock, titleReadersWithoutLock, titleReadersWithLocks, titleKilled} {
		rows = append(rows, row{
			title: title, mutations: many, lost: many, reads: many, torn: many, errors: many, elapsed: 5 * time.Minute,
			times: summary{average: 99 * time.Millisecond, p99: 999 * time.Second},
		})
	}
	for line := range strings.Lines(table(rows)) {
		require.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 100)
	}
}

func TestFormatCount(t *testing.T) {
	t.Parallel()
	for want, n := range map[string]int{"0": 0, "999": 999, "1,000": 1000, "12,345,678": 12345678, "-1,000": -1000, "-5": -5} {
		require.Equal(t, want, formatCount(n))
	}
}

func TestWrap(t *testing.T) {
	t.Parallel()
	require.Equal(t, "1. short", wrap("1. short"))
	lines := strings.Split(wrap("1. "+strings.Repeat("word ", 50)), "\n")
	require.Len(t, lines, 3)
	for i, line := range lines {
		require.LessOrEqual(t, len(line), 100)
		require.Equal(t, i > 0, strings.HasPrefix(line, "   "))
	}
}
