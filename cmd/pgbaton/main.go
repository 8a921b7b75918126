// Command pgbaton is the library pgbaton at a shell.
package main

import (
	"context"
	"os"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/command"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

func main() {
	supervise.BecomeKeeper()
	streams := command.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	os.Exit(command.Execute(context.Background(), os.Args[1:], streams))
}
