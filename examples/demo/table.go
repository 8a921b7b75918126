package demo

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// row is one line of a table.
type row struct {
	title     string
	mutations int
	lost      int
	reads     int // 0: this section has no readers
	torn      int
	conflicts int // attempts that came too late; one that was tried again is no error
	refused   int // calls that ended with a conflict
	errors    int // calls that ended with any other error
	problem   string
	times     summary
	elapsed   time.Duration
}

// column is one column of a table.
type column struct {
	head string
	cell func(r row) string
}

var (
	columnTitle     = column{"", func(r row) string { return r.title }}
	columnMutations = column{"mutations", func(r row) string { return formatCount(r.mutations) }}
	columnLost      = column{"lost", func(r row) string { return formatCount(r.lost) }}
	columnReads     = column{"reads", func(r row) string { return ofReaders(r, r.reads) }}
	columnTorn      = column{"torn", func(r row) string { return ofReaders(r, r.torn) }}
	columnConflicts = column{"conflicts", func(r row) string { return formatCount(r.conflicts) }}
	columnErrors    = column{"errors", formatErrors}
	columnAverage   = column{"average", func(r row) string { return formatTime(r.times.average) }}
	columnP99       = column{"p99", func(r row) string { return formatTime(r.times.p99) }}
	columnRate      = column{"per s", func(r row) string { return formatRate(perSecond(r.mutations, r.elapsed)) }}
)

// The tables' columns.
var (
	comparison = []column{
		columnTitle, columnMutations, columnLost, columnConflicts, columnErrors, columnAverage, columnP99, columnRate,
	}
	others = []column{
		columnTitle, columnMutations, columnLost, columnReads, columnTorn, columnErrors, columnAverage, columnP99, columnRate,
	}
)

func ofReaders(r row, n int) string {
	if r.reads == 0 {
		return "-"
	}
	return formatCount(n)
}

// formatErrors gives the calls that failed, and their part of all.
func formatErrors(r row) string {
	failed := r.refused + r.errors
	if failed == 0 {
		return "0"
	}
	return formatCount(failed) + " (" + formatPercent(failed, r.mutations+r.reads+failed) + ")"
}

// table gives the rows as aligned text: the first column to the left, the others to the right.
func table(columns []column, rows []row) string {
	lines := make([][]string, 1+len(rows))
	for _, c := range columns {
		lines[0] = append(lines[0], c.head)
		for i, r := range rows {
			lines[1+i] = append(lines[1+i], c.cell(r))
		}
	}
	widths := make([]int, len(columns))
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var all strings.Builder
	for n, line := range lines {
		var text strings.Builder
		for i, cell := range line {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				text.WriteString(cell + pad)
			} else {
				text.WriteString("  " + pad + cell)
			}
		}
		all.WriteString(strings.TrimRight(text.String(), " ") + "\n")
		if n == 0 {
			all.WriteString(strings.Repeat("-", utf8.RuneCountInString(text.String())) + "\n")
		}
	}
	return all.String()
}

// formatCount groups the digits by thousands.
func formatCount(n int) string {
	if n < 0 {
		return "-" + formatCount(-n)
	}
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// formatTime gives milliseconds, or seconds from 10 s on.
func formatTime(d time.Duration) string {
	switch {
	case d >= 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= 100*time.Millisecond:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
	case d == 0:
		return "-"
	default:
		return fmt.Sprintf("%.2f ms", d.Seconds()*1000)
	}
}

func formatPercent(part, whole int) string {
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}

func formatRate(rate float64) string {
	if rate < 100 {
		return fmt.Sprintf("%.1f", rate)
	}
	return formatCount(int(rate))
}
