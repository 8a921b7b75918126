package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
)

// count returns the lines of files.
func count(files []string) (int, error) {
	sum := 0
	for _, file := range files {
		text, err := os.ReadFile(file) //nolint:gosec // a source file that the go command has listed
		if err != nil {
			return 0, err
		}
		sum += bytes.Count(text, []byte{'\n'})
	}
	return sum, nil
}

// draw prints the floors from the top, each package with its lines of code and what it imports.
func draw(out io.Writer, plan *plan, packages map[string]*pkg) {
	total := 0
	for _, f := range plan.floors {
		fmt.Fprintf(out, "%s\n", f.purpose)
		for _, name := range f.packages {
			p := packages[name]
			if p == nil {
				continue
			}
			arrow := ""
			if len(p.imports) > 0 {
				arrow = " -> " + strings.Join(p.imports, " ")
			}
			fmt.Fprintf(out, "  %-22s %5d lines%s\n", name, p.lines, arrow)
			total += p.lines
		}
	}
	fmt.Fprintf(out, "%d lines of code, tests not counted\n", total)
}
