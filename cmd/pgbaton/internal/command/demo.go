package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/pgbaton/pgbaton/examples/demo"
	"github.com/pgbaton/pgbaton/internal/cli"
)

func (a *app) demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "demo", Short: "show on a real server what locks are for", Long: strings.TrimSpace(demo.About),
		Example: "  pgbaton demo\n  DEMO_WORKERS=8 pgbaton demo --duration 10s", Args: arguments(),
	}
	flags := cmd.Flags()
	flags.Int("workers", 0, "worker `processes`; default: DEMO_WORKERS, else 4")
	flags.Duration("duration", 0, "`time` that each timed section takes; default: 3.5s")
	flags.Int("rounds", 0, "holders to kill; default: 10")
	flags.Duration("work", 0, "`time` that a worker thinks between reading and writing; default: 1ms")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		var args []string // only what is given: the defaults are the demo's
		flags.Visit(func(f *pflag.Flag) {
			if f.Name != "verbose" {
				args = append(args, "-"+f.Name+"="+f.Value.String())
			}
		})
		return demo.Run(ctx, args, a.streams())
	})
	return cmd
}

// demoWorkerCommand is for the demo itself.
func (a *app) demoWorkerCommand() *cobra.Command {
	return &cobra.Command{
		Use: demo.WorkerCommand, Hidden: true, Args: arguments(),
		RunE: a.do(func(ctx context.Context, args []string) error { return demo.RunWorker(ctx, args, a.streams()) }),
	}
}

func (a *app) streams() cli.Streams {
	return cli.Streams{In: a.std.In, Out: a.std.Out, Err: a.std.Err, Getenv: a.std.Getenv}
}
