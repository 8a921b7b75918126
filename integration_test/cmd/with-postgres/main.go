// Command with-postgres runs a command with a PostgreSQL at hand:
//
//	go run ./cmd/with-postgres -- COMMAND [ARGUMENT…]
//
// It finds or starts a server (package pgserver says how), makes a private empty database in it and sets
// DATABASE_URL to that database for the command. When the command has ended, the database is dropped and a server that
// was started is stopped. Signals are passed on to the command, and its exit status is with-postgres's own.
// (Under go run every failure becomes status 1; build the program where the status matters.)
//
// With -look it only says which server it would use, and fails when there is none.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

const (
	statusOwnFailure = 125 // as env, nohup and docker run have it
	statusNotRun     = 126
	statusNotFound   = 127

	stopTimeout = 30 * time.Second
)

func main() {
	look := flag.Bool("look", false, "only say which server would be used")
	quiet := flag.Bool("quiet", false, "do not say which server is used")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: with-postgres [-quiet] -- COMMAND [ARGUMENT...]\n       with-postgres -look")
		flag.PrintDefaults()
	}
	flag.Parse()
	var (
		status int
		err    error
	)
	switch {
	case *look:
		err = printLook()
	case flag.NArg() == 0:
		flag.Usage()
		os.Exit(2)
	default:
		status, err = run(flag.Args(), *quiet)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "with-postgres:", err)
		if status == 0 {
			status = statusOwnFailure
		}
	}
	os.Exit(status)
}

func printLook() error {
	origin, err := pgserver.Look(context.Background())
	if err == nil {
		fmt.Println(origin)
	}
	return err
}

// run gives the command's exit status, or an error of with-postgres's own, or both.
func run(command []string, quiet bool) (status int, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	r := &relay{cancel: cancel}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for sig := range signals {
			r.deliver(sig)
		}
	}()

	server, err := pgserver.Start(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, within(server.Stop)) }()
	url, drop, err := server.CreateDatabase(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, within(drop)) }()
	if !quiet {
		fmt.Fprintf(os.Stderr, "with-postgres: PostgreSQL %d, %s\n", server.Major(), server.Origin())
	}
	return runCommand(command, url, r)
}

func runCommand(command []string, url string, r *relay) (int, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "DATABASE_URL="+url)
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return statusNotFound, err
		}
		return statusNotRun, err
	}
	r.attach(cmd.Process)
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil // as a shell has it
	}
	return exit.ExitCode(), nil
}

func within(end func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return end(ctx)
}
