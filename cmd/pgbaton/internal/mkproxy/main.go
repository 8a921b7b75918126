// Command mkproxy makes a module proxy in the file system, of the tree as it is: what a release would be.
//
//	mkproxy REPOSITORY VERSION DIRECTORY
//
// The go.mod of the command is released without its replace directive, with which "go install" would refuse it.
package main

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"
)

const (
	library = "github.com/pgbaton/pgbaton"
	command = "cmd/pgbaton" // below the library's directory and path
)

func main() {
	if len(os.Args) != 4 { //nolint:mnd // the name and three
		fmt.Fprintln(os.Stderr, "usage: mkproxy REPOSITORY VERSION DIRECTORY")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "mkproxy:", err)
		os.Exit(1)
	}
}

func run(repository, version, proxy string) error {
	files, err := list(repository)
	if err != nil {
		return err
	}
	modules := nested(files)
	for _, dir := range []string{"", command} {
		m := module{repository: repository, dir: dir, version: version}
		if m.gomod, err = m.releasedMod(); err != nil {
			return err
		}
		for _, file := range files {
			if home(modules, file) == dir {
				m.files = append(m.files, file)
			}
		}
		if err := m.write(filepath.Join(proxy, filepath.FromSlash(m.path()), "@v")); err != nil {
			return fmt.Errorf("%s: %w", m.path(), err)
		}
	}
	return nil
}

// list returns the files of a repository, those that are not added yet included.
func list(repository string) ([]string, error) {
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard")
	cmd.Dir = repository
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("git ls-files: %w", err)
	}
	var files []string
	for _, file := range strings.Fields(string(text)) {
		if _, err := os.Stat(filepath.Join(repository, file)); err == nil { // else it was removed
			files = append(files, file)
		}
	}
	return files, nil
}

// nested returns the directories of modules below the library's.
func nested(files []string) []string {
	var dirs []string
	for _, file := range files {
		if dir, base := path.Split(file); base == "go.mod" && dir != "" {
			dirs = append(dirs, strings.TrimSuffix(dir, "/"))
		}
	}
	return dirs
}

// home returns the module that a file belongs to.
func home(modules []string, file string) string {
	for _, dir := range modules {
		if strings.HasPrefix(file, dir+"/") {
			return dir
		}
	}
	return ""
}

// module is what is released.
type module struct {
	repository, dir, version string

	files []string // of the repository
	gomod []byte
}

func (m module) path() string { return path.Join(library, m.dir) }

// releasedMod returns the go.mod of the release.
func (m module) releasedMod() ([]byte, error) {
	original, err := os.ReadFile(filepath.Join(m.repository, m.dir, "go.mod"))
	if err != nil || m.dir == "" {
		return original, err
	}
	scratch, err := os.MkdirTemp("", "mkproxy")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(scratch) }()
	file := filepath.Join(scratch, "go.mod")
	if err := os.WriteFile(file, original, 0o600); err != nil {
		return nil, err
	}
	//nolint:gosec // the version is the caller's
	cmd := exec.Command("go", "mod", "edit", "-dropreplace="+library, "-require="+library+"@"+m.version, file)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go mod edit: %w: %s", err, out)
	}
	return os.ReadFile(file)
}

// write writes what a proxy has of the module.
func (m module) write(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	archive, err := os.Create(filepath.Join(dir, m.version+".zip")) //nolint:gosec // below the directory that was named
	if err != nil {
		return err
	}
	if err := errors.Join(m.pack(archive), archive.Close()); err != nil {
		return err
	}
	info := fmt.Sprintf(`{"Version":%q,"Time":%q}`, m.version, time.Now().UTC().Format(time.RFC3339))
	return errors.Join(
		os.WriteFile(filepath.Join(dir, m.version+".info"), []byte(info), 0o600),
		os.WriteFile(filepath.Join(dir, m.version+".mod"), m.gomod, 0o600),
		os.WriteFile(filepath.Join(dir, "list"), []byte(m.version+"\n"), 0o600),
	)
}

// pack writes the module's archive. One without a licence of its own has the repository's.
func (m module) pack(out io.Writer) error {
	archive := zip.NewWriter(out)
	add := func(name string, text []byte) error {
		w, err := archive.Create(m.path() + "@" + m.version + "/" + name)
		if err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	}
	files := m.files
	if m.dir != "" {
		files = append(files, "LICENSE")
	}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(m.repository, file)) //nolint:gosec // a file of the repository
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(file, m.dir+"/")
		if name == "go.mod" {
			text = m.gomod
		}
		if err := add(name, text); err != nil {
			return err
		}
	}
	return archive.Close()
}
