// Command mkdocs writes what documents pgbaton: man pages, and transcripts.
//
//	mkdocs man DIRECTORY
//	mkdocs transcripts FILE...
//
// A transcript is a code block of Markdown that begins with ```console. Its lines that begin with "$ " are run in one shell, in an empty
// directory, and what is between them is replaced by what they print.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra/doc"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/command"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkdocs:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("say what: man DIRECTORY, or transcripts and files")
	}
	switch args[0] {
	case "man":
		return man(args[1])
	case "transcripts":
		for _, file := range args[1:] {
			if err := transcripts(file); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		return nil
	}
	return fmt.Errorf("there is no %q", args[0])
}

// man writes a page for each subcommand.
func man(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	root := command.Tree()
	root.DisableAutoGenTag = true
	return doc.GenManTree(root, &doc.GenManHeader{Title: "PGBATON", Section: "1", Source: "pgbaton", Manual: "pgbaton"}, dir)
}

const (
	opening = "```console"
	closing = "```"
	prompt  = "$ "
)

// transcripts runs the transcripts of a file again.
func transcripts(file string) error {
	text, err := os.ReadFile(file) //nolint:gosec // the file that was named
	if err != nil {
		return err
	}
	var out strings.Builder
	var commands []string
	inside := false
	for line := range strings.Lines(string(text)) {
		switch trimmed := strings.TrimSuffix(line, "\n"); {
		case !inside:
			out.WriteString(line)
			inside = trimmed == opening
		case trimmed == closing:
			said, err := perform(commands)
			if err != nil {
				return err
			}
			for i, command := range commands {
				out.WriteString(prompt + command + "\n" + said[i])
			}
			out.WriteString(line)
			inside, commands = false, nil
		case strings.HasPrefix(trimmed, prompt):
			commands = append(commands, strings.TrimPrefix(trimmed, prompt))
		}
	}
	if inside {
		return errors.New("a transcript has no end")
	}
	return os.WriteFile(file, []byte(out.String()), 0o600) // it exists, and keeps its mode
}

// perform runs commands in a shell and returns what each has printed.
func perform(commands []string) ([]string, error) {
	dir, err := os.MkdirTemp("", "transcript")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	const mark = "\x01"
	var script strings.Builder
	script.WriteString("exec 2>&1\n")
	for i, command := range commands {
		file := filepath.Join(dir, fmt.Sprintf(".command%d", i))
		if err := os.WriteFile(file, []byte(command+"\n"), 0o600); err != nil {
			return nil, err
		}
		// Each command finds the exit status of the one before it.
		fmt.Fprintf(&script, "status=$?; printf '%s'; (exit $status)\n. '%s'\n", mark, file)
	}
	shell := exec.Command("bash", "-c", script.String()) //nolint:gosec // the commands of a document of this repository
	shell.Dir = dir
	output, err := shell.Output()
	var status *exec.ExitError
	if err != nil && !errors.As(err, &status) {
		return nil, err
	}
	said := strings.Split(string(bytes.TrimPrefix(output, []byte(mark))), mark)
	if len(said) != len(commands) {
		return nil, fmt.Errorf("%d commands gave %d answers: %s", len(commands), len(said), output)
	}
	return said, nil
}
