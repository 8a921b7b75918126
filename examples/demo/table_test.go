package demo

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	t.Parallel()
	ms := summary{average: 4140 * time.Microsecond, p99: 9930 * time.Microsecond}
	require.Equal(t, strings.TrimPrefix(`
                     mutations   lost  conflicts         errors  average      p99  per s
----------------------------------------------------------------------------------------
1 no lock                4,812  3,566          0              0  4.14 ms  9.93 ms    962
4 version, no retry        500      0      1,500  1,500 (75.0%)  4.14 ms  9.93 ms    100
5 version, retries         989      0      1,234      11 (1.1%)  4.14 ms  9.93 ms    197
`, "\n"), table(comparison, []row{
		{title: "1 no lock", mutations: 4812, lost: 3566, elapsed: 5 * time.Second, times: ms},
		{title: "4 version, no retry", mutations: 500, conflicts: 1500, refused: 1500, elapsed: 5 * time.Second, times: ms},
		{
			title: "5 version, retries", mutations: 989, conflicts: 1234, refused: 10, errors: 1, elapsed: 5 * time.Second,
			times: ms,
		},
	}))
	require.Equal(t, strings.TrimPrefix(`
                  mutations  lost      reads  torn    errors  average     p99  per s
------------------------------------------------------------------------------------
6 readers, locks         11     0  1,234,567     0  2 (0.0%)   123 ms  12.0 s    5.5
7 holder killed          11     0          -     -         0        -       -    5.5
`, "\n"), table(others, []row{
		{
			title: "6 readers, locks", mutations: 11, reads: 1234567, torn: 0, errors: 2, elapsed: 2 * time.Second,
			times: summary{average: 123456 * time.Microsecond, p99: 12 * time.Second},
		},
		{title: "7 holder killed", mutations: 11, elapsed: 2 * time.Second},
	}))
}

func TestTable_FitsIntoAHundredColumns(t *testing.T) {
	t.Parallel()
	const many = 9_999_999
	full := func(title string) row {
		return row{
			title: title, mutations: many, lost: many, conflicts: many, elapsed: 5 * time.Minute,
			times: summary{average: 99 * time.Millisecond, p99: 999 * time.Second},
		}
	}
	version := full(titleVersion)
	version.refused = many
	readers := full(titleReadersWithoutLock)
	readers.reads, readers.torn = many, many
	text := table(comparison, []row{version}) + table(others, []row{readers})
	for line := range strings.Lines(text) {
		require.LessOrEqual(t, len(strings.TrimSuffix(line, "\n")), 100, line)
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
