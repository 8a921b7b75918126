package storm

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// Latest returns the operation whose calls came back longest after their context's end.
func (o *Outcome) Latest() (op string, d time.Duration, late int64) {
	for _, name := range slices.Sorted(maps.Keys(o.Ops)) {
		report := o.Ops[name]
		late += report.Late
		if latest := time.Duration(report.Latest); latest > d {
			op, d = name, latest
		}
	}
	return op, d, late
}

// Raw returns the number of errors that match none of the library's.
func (o *Outcome) Raw() (n int64) {
	for label, count := range o.Total.Errors {
		if strings.HasPrefix(label, worker.Raw) {
			n += count
		}
	}
	return n
}

// Table writes outcomes as a table.
func Table(w io.Writer, outcomes []*Outcome) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "kind\tmajor\tfaults\ttried\tgranted\trefused\tlost\tviolations\toverlaps (silent)\tp50\tmax\traw errors\tlate\tlatest\thealed")
	for _, o := range outcomes {
		_, latest, late := o.Latest()
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d (%d)\t%v\t%v\t%d\t%d\t%v\t%v\n",
			o.Kind, o.Major, o.Faults, o.Total.Tried, o.Total.Granted, o.Total.Refused, o.Total.Lost, len(o.Violations),
			o.Overlaps.Count, o.Overlaps.Silent, micro(o.Overlaps.P50), micro(o.Overlaps.Max), o.Raw(), late,
			latest.Round(time.Millisecond), o.Healed.Round(time.Millisecond))
	}
	_ = table.Flush() // to the terminal
}

// Text returns all violations.
func (o *Outcome) Text() string { return strings.Join(o.Violations, "\n") }

// Print writes the details of a storm, for which a table is too narrow.
func (o *Outcome) Print(w io.Writer) {
	fmt.Fprintf(w, "\n%s on %d, seed %d, %.0f s, rows left %v\n", o.Kind, o.Major, o.Seed, o.Seconds, o.Left)
	for _, name := range slices.Sorted(maps.Keys(o.Ops)) {
		if report := o.Ops[name]; report.Late > 0 {
			fmt.Fprintf(w, "  late: %s, %d times, at most %v\n", name, report.Late, time.Duration(report.Latest).Round(time.Millisecond))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Ops)) {
		for _, label := range slices.Sorted(maps.Keys(o.Ops[name].Errors)) {
			fmt.Fprintf(w, "  %6d  %s: %s\n", o.Ops[name].Errors[label], name, label)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(o.Overlaps.Keys)) {
		fmt.Fprintf(w, "  overlaps: %q, %d times\n", key, o.Overlaps.Keys[key])
	}
	for text, n := range counted(o.Violations) {
		fmt.Fprintf(w, "  VIOLATION (%d times) %s\n", n, text)
	}
}

// TableOfThawed writes what frozen waiters cost as a table, and reports whether it was too much.
func TableOfThawed(w io.Writer, all []*Thawed) (broken bool) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "line\tmajor\tfrozen\trounds\tto the next grant, p50\tmax\tviolations")
	for _, t := range all {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%v\t%v\t%d\n", t.Line, t.Major, t.Frozen, t.Rounds, micro(t.P50), micro(t.Max), len(t.Violations))
		broken = broken || len(t.Violations) > 0
	}
	_ = table.Flush() // to the terminal
	return broken
}

func micro(d time.Duration) time.Duration { return d.Round(time.Microsecond) }

// counted puts violations of one form together, in the order of their first ones.
func counted(violations []string) func(yield func(string, int) bool) {
	forms := map[string]int{}
	var order []string
	for _, text := range violations {
		form, _, _ := strings.Cut(text, ":")
		if forms[form] == 0 {
			order = append(order, text)
		}
		forms[form]++
	}
	return func(yield func(string, int) bool) {
		for _, text := range order {
			form, _, _ := strings.Cut(text, ":")
			if !yield(text, forms[form]) {
				return
			}
		}
	}
}

// Save writes a result as JSON.
func Save(path string, result any) error {
	content, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // for everybody to read
		return err
	}
	return os.WriteFile(path, append(content, '\n'), 0o644) //nolint:gosec // for everybody to read
}
