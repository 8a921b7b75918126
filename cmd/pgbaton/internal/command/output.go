package command

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// jsonFlag gives a subcommand that has something to show the choice of how.
func (a *app) jsonFlag(cmds ...*cobra.Command) {
	for _, cmd := range cmds {
		cmd.Flags().BoolVar(&a.json, "json", false, "print JSON, for programs")
	}
}

// emit prints a value as JSON, or for people.
func (a *app) emit(value any, forPeople func() error) error {
	if !a.json {
		return forPeople()
	}
	encoder := json.NewEncoder(a.std.Out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// table writes rows in columns. Cells have names that others have chosen.
func table(out io.Writer, head []string, rows [][]string) error {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0) //nolint:mnd // two blanks between columns
	for _, row := range append([][]string{head}, rows...) {
		for _, cell := range row {
			if !isPlain(cell) {
				cell = printable(cell)
			}
			fmt.Fprint(w, cell+"\t")
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	var trimmed strings.Builder
	for line := range strings.Lines(text.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	_, err := io.WriteString(out, trimmed.String()) // in one write: a listing may have thousands of lines
	return err
}
