package contract

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// cell is what became of a law on a ground.
type cell struct {
	ops    int64 // of the library
	faults int64 // of the emulation, meanwhile
	failed bool
}

func (c cell) String() string {
	text := fmt.Sprint(c.ops)
	if c.faults > 0 {
		text += fmt.Sprintf(" (%d)", c.faults)
	}
	if c.failed {
		text += " **broken**"
	}
	return text
}

// table is what the tests of this run have noted, by ground and law.
var table = struct {
	sync.Mutex
	cells map[string]map[int]cell
}{cells: map[string]map[int]cell{}}

// note adds what a test did. A law may have several tests.
func note(law int, ground string, c cell) {
	table.Lock()
	defer table.Unlock()
	if table.cells[ground] == nil {
		table.cells[ground] = map[int]cell{}
	}
	before := table.cells[ground][law]
	table.cells[ground][law] = cell{before.ops + c.ops, before.faults + c.faults, before.failed || c.failed}
}

// tableFile is where the table is written to.
var tableFile = filepath.Join("..", "results", "contract.md")

// writeTable writes the table as Markdown, and returns the exit status.
func writeTable() int {
	table.Lock()
	defer table.Unlock()
	if len(table.cells) == 0 {
		return 0
	}
	columns := map[int]bool{}
	for _, cells := range table.cells {
		for law := range cells {
			columns[law] = true
		}
	}
	laws := slices.Sorted(maps.Keys(columns))
	var text strings.Builder
	text.WriteString("Operations of the library by ground and law; in brackets the faults of the emulation meanwhile.\n\n| ground |")
	for _, law := range laws {
		fmt.Fprintf(&text, " %d |", law)
	}
	text.WriteString("\n|---|" + strings.Repeat("---:|", len(laws)) + "\n")
	for _, ground := range order(slices.Collect(maps.Keys(table.cells))) {
		fmt.Fprintf(&text, "| %s |", ground)
		for _, law := range laws {
			if c, ok := table.cells[ground][law]; ok {
				fmt.Fprintf(&text, " %v |", c)
			} else {
				text.WriteString(" |")
			}
		}
		text.WriteString("\n")
	}
	err := os.MkdirAll(filepath.Dir(tableFile), 0o755) //nolint:gosec // for everybody to read
	if err == nil {
		err = os.WriteFile(tableFile, []byte(text.String()), 0o644) //nolint:gosec // for everybody to read
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Print(text.String())
	return 0
}

// order puts names of grounds into the order in which grounds has them.
func order(names []string) []string {
	rank := map[string]int{}
	for i, g := range grounds() {
		rank[g.name] = i
	}
	slices.SortFunc(names, func(a, b string) int { return rank[a] - rank[b] })
	return names
}
