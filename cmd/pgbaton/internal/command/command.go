package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton/internal/cli"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Exit statuses.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotAcquired = 75 // of run, lead and wait: EX_TEMPFAIL
	exitLost        = 76 // of run and lead
	exitOwnFailure  = 125
	exitSignalled   = 128 // and the signal's number
	exitInterrupted = exitSignalled + 2
)

// Streams is what a call uses of its process; tests give their own.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// app is one call of the command.
type app struct {
	std     Streams
	signals *signals

	databaseURL   string
	name          string
	ttl           time.Duration
	sessionPooler bool
	verbose       bool
	json          bool

	began bool // the subcommand's own code runs: an error is no longer one of usage
}

// statusError is an error with an exit status of its own. Without err, everything was said.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

func exit(status int, err error) error {
	if status == exitOK && err == nil {
		return nil
	}
	return &statusError{status, err}
}

// Execute runs a call and returns its exit status. It takes this process's signals until it returns.
func Execute(ctx context.Context, args []string, std Streams) int {
	a := &app{std: std, signals: takeSignals()}
	defer a.signals.end()
	ctx, cancel := a.signals.context(ctx)
	defer cancel()
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.conclude(ctx, cmd, err)
}

// Tree is the command for those that describe it.
func Tree() *cobra.Command {
	a := &app{std: Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Getenv: func(string) string { return "" }}}
	return a.root()
}

const rootLong = `pgbaton takes locks in the PostgreSQL that you already run: around a command, in cron, in a shell script,
and shows an operator what there is.

The database is given by --database-url, by DATABASE_URL, or as psql takes it: PGHOST, PGPORT, PGUSER,
PGDATABASE, PGSERVICE, PGPASSWORD and the file ~/.pgpass. No password is ever printed.

Keys are names, such as invoice/42. id:42 is the bigint key 42 of PostgreSQL's advisory locks, and pair:1,2 the
pair of two integers; a name that begins so is written name:id:42.`

const rootExample = `  export DATABASE_URL=postgres://app@db.example.org/app
  pgbaton migrate up
  pgbaton run nightly-report --try -- ./report.sh
  pgbaton ls --tree
  pgbaton doctor`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "pgbaton", Short: "locks in the PostgreSQL that you already run", Long: rootLong, Example: rootExample,
		Version: version(), SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return cli.Usagef("there is no command %q", args[0])
			}
			_, _ = fmt.Fprint(a.std.Err, cmd.UsageString())
			return exit(exitUsage, nil)
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetIn(a.std.In)
	root.SetOut(a.std.Out)
	root.SetErr(a.std.Err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.Usagef("%v", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.databaseURL, "database-url", "", cli.DatabaseFlagUsage)
	flags.StringVar(&a.name, "name", "", "what this client is called, as others see it; default: host:pid")
	flags.DurationVar(&a.ttl, "ttl", defaultTTL, "after this `time` of silence the server gives what this process holds to others")
	flags.BoolVar(&a.sessionPooler, "session-pooler", false, "the pooler in between is in session mode")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "say more on standard error")
	root.AddGroup(
		&cobra.Group{ID: "hold", Title: "Hold something:"},
		&cobra.Group{ID: "see", Title: "See and change what there is:"},
		&cobra.Group{ID: "try", Title: "Try it out:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add("hold", a.runCommand(), a.leadCommand(), a.waitCommand())
	add("see", a.lsCommand(), a.freeCommand(), a.resignCommand(), a.semaphoreCommand(), a.fenceCommand(), a.migrateCommand(), a.doctorCommand(),
		a.serveCommand())
	add("try", a.demoCommand(), a.benchCommand())
	root.AddCommand(a.demoWorkerCommand())
	return root
}

// version is that of the module, as the go command recorded it.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// do makes a subcommand's own code out of a func.
func (a *app) do(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.began = true
		return f(cmd.Context(), args)
	}
}

// arguments is the check that there are so many arguments, called so.
func arguments(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return cli.Usagef("%s is missing", names[len(args)])
		case len(args) > len(names):
			// The argument is not repeated: it may be a URL with a password.
			return cli.Usagef("takes %d arguments, not %d", len(names), len(args))
		}
		return nil
	}
}

// conclude says what has to be said about an error, and returns the exit status.
func (a *app) conclude(ctx context.Context, cmd *cobra.Command, err error) int {
	var (
		status *statusError
		usage  *cli.UsageError
		name   = cmd.CommandPath()
	)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, cli.ErrReported):
		return exitFailed
	case errors.As(err, &usage) || !a.began && !errors.As(err, &status):
		a.say("%s: %s\nRun \"%s --help\" for how it is used.", name, plain(err), name)
		return failureOf(cmd, exitUsage)
	case errors.As(err, &status):
		if status.err != nil {
			a.say("%s: %s", name, plain(status.err))
		}
		return status.status
	case ctx.Err() != nil:
		a.say("%s: interrupted: %s", name, plain(err))
		return cmp.Or(haltStatus(context.Cause(ctx)), exitInterrupted)
	}
	a.say("%s: %s", name, plain(cli.Explain(err)))
	return failureOf(cmd, exitFailed)
}

// plain is the text of an error without the library's prefix: the command's name is before it.
func plain(err error) string { return strings.TrimPrefix(err.Error(), lockerr.Prefix) }

// runsCommand marks subcommands whose exit status is that of another command, so that their own failures need one that commands seldom use.
const runsCommand = "runs a command"

func failureOf(cmd *cobra.Command, status int) int {
	if _, other := cmd.Annotations[runsCommand]; other {
		return exitOwnFailure
	}
	return status
}

// say writes a line for people to standard error; when that fails there is nobody left to tell.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintln(a.std.Err, redact(fmt.Sprintf(format, args...)))
}

// print writes to standard output.
func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.std.Out, format, args...)
	return err
}

var secrets = []*regexp.Regexp{
	regexp.MustCompile(`(?i)(postgres(?:ql)?://)[^\s"']*`),
	regexp.MustCompile(`(?i)(password\s*=\s*)(?:'[^']*'|[^\s"']+)`),
}

// redact takes out what may be a password: connection strings that were given in the wrong place.
func redact(text string) string {
	for _, secret := range secrets {
		text = secret.ReplaceAllString(text, "${1}…")
	}
	return text
}
