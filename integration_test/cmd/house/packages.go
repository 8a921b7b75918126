package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// pkg is a package of the module.
type pkg struct {
	name    string // below the module's path; the root has the last element of the path
	door    bool   // it is the root
	files   []string
	lines   int
	imports []string // of this module
}

// list asks the go command for the module's packages.
func list(dir string) (map[string]*pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports,Module", "./...")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.String())
	}
	packages := map[string]*pkg{}
	for decoder := json.NewDecoder(bytes.NewReader(text)); ; {
		var listed struct {
			ImportPath, Dir  string
			GoFiles, Imports []string
			Module           struct{ Path string }
		}
		if err := decoder.Decode(&listed); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		short := func(path string) string {
			if path == listed.Module.Path {
				return path[strings.LastIndex(path, "/")+1:]
			}
			return strings.TrimPrefix(strings.TrimPrefix(path, listed.Module.Path+"/"), "internal/")
		}
		p := &pkg{name: short(listed.ImportPath), door: listed.ImportPath == listed.Module.Path}
		for _, file := range listed.GoFiles {
			p.files = append(p.files, filepath.Join(listed.Dir, file))
		}
		if p.lines, err = count(p.files); err != nil {
			return nil, err
		}
		for _, path := range listed.Imports {
			if path == listed.Module.Path || strings.HasPrefix(path, listed.Module.Path+"/") {
				p.imports = append(p.imports, short(path))
			}
		}
		packages[p.name] = p
	}
}

func sorted(packages map[string]*pkg) iter.Seq2[string, *pkg] {
	return func(yield func(string, *pkg) bool) {
		for _, name := range slices.Sorted(maps.Keys(packages)) {
			if !yield(name, packages[name]) {
				return
			}
		}
	}
}
