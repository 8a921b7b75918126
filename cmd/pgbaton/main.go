// Command pgbaton is the library pgbaton at a shell.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pgbaton/pgbaton/examples/demo"
	"github.com/pgbaton/pgbaton/internal/cli"
)

// Exit statuses.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // what shells give for SIGINT
)

// command is a subcommand. One without a summary is not listed: it is for pgbaton itself.
type command struct {
	name    string
	summary string
	run     func(ctx context.Context, args []string, std cli.Streams) error
}

func commands() []command {
	return []command{
		{name: "demo", summary: "show on a real server what locks are for", run: demo.Run},
		{name: demo.WorkerCommand, run: demo.RunWorker},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}))
}

// run runs one subcommand and returns the exit status.
func run(ctx context.Context, args []string, std cli.Streams) int {
	if len(args) == 0 {
		say(std.Err, "%s", usage())
		return exitUsage
	}
	switch args[0] {
	case "help", "-h", "-help", "--help":
		say(std.Out, "%s", usage())
		return exitOK
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return exitStatus(ctx, c.name, c.run(ctx, args[1:], std), std.Err)
		}
	}
	say(std.Err, "pgbaton: there is no command %q\n\n%s", args[0], usage())
	return exitUsage
}

// exitStatus reports what a subcommand returned.
func exitStatus(ctx context.Context, name string, err error, stderr io.Writer) int {
	var wrongUse *cli.UsageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, cli.ErrReported):
		return exitFailed
	case errors.As(err, &wrongUse):
		say(stderr, "pgbaton %s: %v\nRun \"pgbaton %s -h\" for the flags.\n", name, err, name)
		return exitUsage
	case ctx.Err() != nil:
		say(stderr, "pgbaton %s: interrupted: %v\n", name, err)
		return exitInterrupted
	default:
		say(stderr, "pgbaton %s: %v\n", name, err)
		return exitFailed
	}
}

// say writes for people; when that fails there is nobody left to tell.
func say(w io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }

func usage() string {
	var text strings.Builder
	text.WriteString("Usage: pgbaton COMMAND [FLAGS]\n\nCommands:\n")
	for _, c := range commands() {
		if c.summary != "" {
			fmt.Fprintf(&text, "  %-8s %s\n", c.name, c.summary)
		}
	}
	text.WriteString("\n\"pgbaton COMMAND -h\" tells more about one of them.\n")
	return text.String()
}
