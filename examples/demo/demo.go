// Package demo is the subcommand demo: worker processes change one row of a real database, without a lock
// and with each of pgbaton's ways to keep them apart, and what becomes of the row is counted.
//
// The comparison of the ways (raise.go) and each other section of the demo have a file of their own, which holds
// what the worker processes do, how the parent runs them, and what it expects. A section is listed in
// sections.go, its workers' job in worker.go.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

// Run runs the demo. It returns [cli.ErrReported] when an expectation did not hold.
func Run(ctx context.Context, args []string, std cli.Streams) error {
	opts, err := parseOptions(args, std)
	if err != nil {
		return err
	}
	pool, err := cli.Connect(ctx, opts.database)
	if err != nil {
		return err
	}
	defer pool.Close()
	var version string
	if err := pool.QueryRow(ctx, sqlServerVersion).Scan(&version); err != nil {
		return fmt.Errorf("read server version: %w", err)
	}
	outcomes, err := onStage(ctx, &stage{options: opts, pool: pool, progress: newProgress(std.Err)})
	if err != nil && len(outcomes) < len(sections) {
		return cli.Explain(err)
	}
	text, good := conclude(outcomes)
	if _, err := io.WriteString(std.Out, introduce(opts, version)+text); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	switch {
	case err != nil: // from clearing away
		return cli.Explain(err)
	case !good:
		return cli.ErrReported
	}
	return nil
}

const sqlServerVersion = `SHOW server_version`

// introduce says where the demo ran.
func introduce(opts *options, version string) string {
	version, _, _ = strings.Cut(version, " ")
	config := &opts.database.ConnConfig.Config
	return wrap(fmt.Sprintf("Worker processes: %d. Server: PostgreSQL %s at %s, database %s.",
		opts.workers, version, cli.Address(config), config.Database)) + "\n\n"
}

// onStage prepares the database, runs the sections, and clears away what they used.
func onStage(ctx context.Context, s *stage) (outcomes []outcome, err error) {
	if err := pgbaton.Migrate(ctx, s.pool); err != nil {
		return nil, fmt.Errorf("apply pgbaton's migrations: %w", err)
	}
	client, err := pgbaton.New(ctx, s.pool, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, client.Close(context.WithoutCancel(ctx))) }()

	alone, err := client.TryAcquire(ctx, pgbaton.Name("pgbaton_demo"))
	if errors.Is(err, pgbaton.ErrNotAcquired) && ctx.Err() == nil {
		return nil, errors.New("another demo runs in this database: wait until it is over")
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, alone.Release(ctx)) }()

	if err := checkSchema(ctx, s.pool); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dropSchema(ctx, s.pool)) }()
	if err := createSchema(ctx, s.pool); err != nil {
		return nil, err
	}
	return runSections(ctx, s)
}

func runSections(ctx context.Context, s *stage) ([]outcome, error) {
	outcomes := make([]outcome, 0, len(sections))
	for i, section := range sections {
		s.progress.begin(i+1, len(sections), section.title)
		o, err := section.run(ctx, s)
		if err != nil {
			s.progress.end("stopped")
			return nil, fmt.Errorf("section %d, %s: %w", i+1, section.title, err)
		}
		s.progress.end(o.note())
		outcomes = append(outcomes, o)
	}
	return outcomes, nil
}

// note is the section in a few words, about its last row.
func (o outcome) note() string {
	verdict := "as expected"
	if len(o.failures) > 0 {
		verdict = "not as expected"
	}
	rows := slices.Concat(o.compared, o.rows)
	if len(rows) == 0 {
		return "left out"
	}
	r := rows[len(rows)-1]
	return fmt.Sprintf("%s mutations, %s lost, %s", formatCount(r.mutations), formatCount(r.lost), verdict)
}

const legend = `Times are of one mutation that succeeded, with the wait for its lock or its retries; in 7, 8 and
10, from a kill or a freeze to the next grant; in 9 mutations are visits. Conflicts are attempts
that came too late; errors are calls that failed, in 4 and 5 with a conflict, in 8 with a stale
token.
`

// conclude gives the tables and what was seen, and whether all of it was expected.
func conclude(outcomes []outcome) (string, bool) {
	var compared, rows []row
	for _, o := range outcomes {
		compared = append(compared, o.compared...)
		rows = append(rows, o.rows...)
	}
	var text strings.Builder
	text.WriteString(table(comparison, compared) + "\n" + table(others, rows) + "\n" + legend + "\n")

	failed := 0
	for i, o := range outcomes {
		if len(o.failures) > 0 {
			failed++
		}
		sentences := strings.Join(append(o.seen, o.failures...), " ")
		text.WriteString(wrap(fmt.Sprintf("%d. %s", i+1, sentences)) + "\n")
	}
	text.WriteString("\n" + choice)
	if failed > 0 {
		fmt.Fprintf(&text, "\nNot as expected: %d of %d sections.\n", failed, len(outcomes))
	} else {
		text.WriteString("\nEverything was as expected.\n")
	}
	return text.String(), failed == 0
}

// wrap breaks a sentence into lines of at most lineWidth bytes, the later ones indented.
func wrap(text string) string {
	const lineWidth, indent = 100, "   "
	var lines strings.Builder
	length := 0
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case length+1+len(word) > lineWidth:
			lines.WriteString("\n" + indent)
			length = len(indent)
		default:
			lines.WriteString(" ")
			length++
		}
		lines.WriteString(word)
		length += len(word)
	}
	return lines.String()
}
