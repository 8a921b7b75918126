package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/doctor"
	"github.com/pgbaton/pgbaton/internal/cli"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

const (
	defaultMaxConns = 4
	wordWidth       = 100
)

func (a *app) doctorCommand() *cobra.Command {
	var replicas, maxConns int
	cmd := &cobra.Command{
		Use: "doctor", Short: "look at a database as a service would, and say what to do",
		Long: `Connects as a service would, and says in plain words what it finds, each with what to do: the server, poolers, standbys, the
schema, missing privileges as the statement that gives them, protections that the server refuses, room for locks and
connections, clocks, the network, sessions that keep others waiting, old rows. It changes nothing.

Run it with the URL and the role that the service has. The exit status is 0, with warnings 1, with errors 2.`,
		Example: "  pgbaton doctor\n  pgbaton doctor --replicas 12 --json", Args: arguments(),
	}
	flags := cmd.Flags()
	flags.IntVar(&replicas, "replicas", 1, "how many processes of the service there are")
	flags.IntVar(&maxConns, "max-conns", defaultMaxConns, "Config.MaxConns of the service")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if replicas < 1 || maxConns < 1 {
			return cli.Usagef("--replicas and --max-conns are 1 at the least")
		}
		if _, err := a.database(); err != nil {
			return err
		}
		findings := doctor.Examine(ctx, doctor.Config{
			Connect: a.connect, Replicas: replicas, MaxConns: maxConns, TTL: a.ttl,
			Open: func(ctx context.Context) (*pgbaton.Client, func(), error) {
				c, err := a.open(ctx)
				if err != nil {
					return nil, nil, err
				}
				return c.Client, func() { _ = c.close(ctx) }, nil
			},
		})
		for i := range findings {
			findings[i].Says = redact(strings.TrimPrefix(findings[i].Says, lockerr.Prefix))
		}
		err := a.emit(findings, func() error { return a.print("%s", report(findings)) })
		if worst := doctor.Worst(findings); err == nil && worst != doctor.OK {
			err = exit(int(worst), nil)
		}
		return err
	})
	a.jsonFlag(cmd)
	return cmd
}

// report is the findings for people.
func report(findings []doctor.Finding) string {
	var text strings.Builder
	const indent = "         "
	for _, f := range findings {
		fmt.Fprintf(&text, "%-8s %s: %s\n", f.Level, f.Topic, fold(f.Says, indent))
		if f.Do != "" {
			fmt.Fprintf(&text, "%s-> %s\n", indent, fold(f.Do, indent+"   "))
		}
		for _, sql := range f.SQL {
			fmt.Fprintf(&text, "%s   %s;\n", indent, sql)
		}
	}
	return text.String()
}

// fold breaks a text into lines.
func fold(text, indent string) string {
	var out strings.Builder
	length := len(indent)
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case length+1+len(word) > wordWidth:
			out.WriteString("\n" + indent)
			length = len(indent)
		default:
			out.WriteByte(' ')
			length++
		}
		out.WriteString(word)
		length += len(word)
	}
	return out.String()
}
