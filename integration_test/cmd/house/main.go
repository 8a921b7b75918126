// Command house draws the packages of the library, floor by floor, and fails when the house is not as its map says.
//
// The map is the code block behind the line "<!-- house -->" in CONTRIBUTING.md: a floor a line, the upper floors first, each
// with its packages, then two spaces and what the floor is for. The rules:
//
//   - Each package is on one floor of the map, and each package of the map exists.
//   - A package imports only packages of lower floors.
//   - What a package needs is given to it when it is made: an exported field that holds a func or an interface is a
//     setter by another name, and two of them are a cycle that no import shows. Only types named Config, or ending so, have such
//     fields, and types whose values are made in one expression, which are named in the map's line "values:".
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if err := run(os.Stdout, "CONTRIBUTING.md", "."); err != nil {
		fmt.Fprintln(os.Stderr, "house:", err)
		os.Exit(1)
	}
}

// run draws the house whose module is in dir, and returns what is wrong with it.
func run(out io.Writer, mapFile, dir string) error {
	plan, err := readPlan(mapFile)
	if err != nil {
		return err
	}
	packages, err := list(dir)
	if err != nil {
		return err
	}
	draw(out, plan, packages)
	return errors.Join(append(plan.check(packages), setters(plan, packages)...)...)
}
