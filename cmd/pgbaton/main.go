// Command pgbaton is the library pgbaton at a shell.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/command"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/supervise"
)

func main() {
	supervise.BecomeKeeper()
	ctx, stop := untilStopped(context.Background())
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(command.Execute(ctx, os.Args[1:], command.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}))
}

// untilStopped returns a context that ends with a signal to stop. What this process was started to ignore stays ignored.
func untilStopped(ctx context.Context) (context.Context, context.CancelFunc) {
	var heeded []os.Signal
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if !signal.Ignored(sig) {
			heeded = append(heeded, sig)
		}
	}
	if len(heeded) == 0 {
		return context.WithCancel(ctx)
	}
	return signal.NotifyContext(ctx, heeded...)
}
