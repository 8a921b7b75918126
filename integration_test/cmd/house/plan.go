package main

import (
	"fmt"
	"os"
	"strings"
)

// plan is the map of the house.
type plan struct {
	floors []floor
	values map[string]bool // types, as package.Type, whose values are made in one expression
}

type floor struct {
	packages []string
	purpose  string
}

const marker = "<!-- house -->"

// readPlan reads the map out of a Markdown file.
func readPlan(file string) (*plan, error) {
	text, err := os.ReadFile(file) //nolint:gosec // the file that the caller names
	if err != nil {
		return nil, err
	}
	_, after, found := strings.Cut(string(text), marker)
	_, block, open := strings.Cut(after, "```text\n")
	block, _, shut := strings.Cut(block, "```")
	if !found || !open || !shut {
		return nil, fmt.Errorf("%s has no code block (text) behind %s", file, marker)
	}
	p := &plan{values: map[string]bool{}}
	for line := range strings.Lines(block) {
		line = strings.TrimSpace(line)
		if values, ok := strings.CutPrefix(line, "values:"); ok {
			for name := range strings.FieldsSeq(values) {
				p.values[name] = true
			}
			continue
		}
		if line == "" {
			continue
		}
		packages, purpose, _ := strings.Cut(line, "  ")
		p.floors = append(p.floors, floor{strings.Fields(packages), strings.TrimSpace(purpose)})
	}
	return p, nil
}

// level returns the floor of a package, counted from the top.
func (p *plan) level(name string) (int, bool) {
	for i, f := range p.floors {
		for _, other := range f.packages {
			if other == name {
				return i, true
			}
		}
	}
	return 0, false
}

// check compares the map with the packages and their imports.
func (p *plan) check(packages map[string]*pkg) []error {
	var wrong []error
	for _, f := range p.floors {
		for _, name := range f.packages {
			if packages[name] == nil {
				wrong = append(wrong, fmt.Errorf("the map has the package %s, which does not exist", name))
			}
		}
	}
	for name, pkg := range sorted(packages) {
		from, ok := p.level(name)
		if !ok {
			wrong = append(wrong, fmt.Errorf("the map does not have the package %s", name))
			continue
		}
		for _, imported := range pkg.imports {
			if to, ok := p.level(imported); ok && to <= from {
				wrong = append(wrong, fmt.Errorf("%s imports %s, which does not stand on a lower floor", name, imported))
			}
		}
	}
	return wrong
}
