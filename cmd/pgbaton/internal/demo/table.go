package demo

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// row is one line of the table.
type row struct {
	title     string
	mutations int
	lost      int
	reads     int // 0: this section has no readers
	torn      int
	errors    int
	times     summary
	elapsed   time.Duration
}

var tableHead = []string{"", "mutations", "lost", "reads", "torn", "errors", "average", "p99", "per s"}

func (r row) cells() []string {
	reads, torn := "-", "-"
	if r.reads > 0 {
		reads, torn = formatCount(r.reads), formatCount(r.torn)
	}
	return []string{
		r.title, formatCount(r.mutations), formatCount(r.lost), reads, torn, formatCount(r.errors),
		formatTime(r.times.average), formatTime(r.times.p99),
		formatRate(perSecond(r.mutations, r.elapsed)),
	}
}

// table gives the rows as aligned text: the first column to the left, the others to the right.
func table(rows []row) string {
	lines := [][]string{tableHead}
	for _, r := range rows {
		lines = append(lines, r.cells())
	}
	widths := make([]int, len(tableHead))
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

func formatRate(rate float64) string {
	if rate < 100 {
		return fmt.Sprintf("%.1f", rate)
	}
	return formatCount(int(rate))
}
