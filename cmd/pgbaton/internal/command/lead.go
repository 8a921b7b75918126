package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
)

const leadLong = `Keeps COMMAND running in one place of all that call this with the same NAME: waits until it is elected, runs COMMAND
for that term, and stands for election again when the term is over, with a new COMMAND each time.

A term ends when it is lost, as "run" does it: COMMAND and all its children are killed; or when somebody asks the
leader to resign (pgbaton resign NAME): COMMAND gets TERM, and KILL after --kill-after, or 10 s.
When COMMAND ends by itself, pgbaton resigns and exits with its status: let a service manager start it again.

PGBATON_TOKEN is the term, greater than all before. Signals, the environment and the exit status are as for "run".`

const leadExample = `  # one scheduler over all machines, another one within seconds when its machine dies
  pgbaton lead scheduler -- ./scheduler --config prod.toml

  # hand over before a deploy
  pgbaton resign scheduler`

// resignPatience is how long a command may take to end when the leader is asked to resign.
const resignPatience = 10 * time.Second

func (a *app) leadCommand() *cobra.Command {
	var killAfter time.Duration
	cmd := &cobra.Command{
		Use: "lead NAME [FLAGS] -- COMMAND [ARGUMENT...]", Short: "keep a command running in one place",
		Long: leadLong, Example: leadExample, Annotations: map[string]string{runsCommand: ""},
		DisableFlagsInUseLine: true, Args: beforeCommand("NAME"), ValidArgsFunction: a.completeNames(1, kindTerm),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		return a.lead(context.WithoutCancel(ctx), args[0], args[1:], killAfter)
	})
	holdFlags(cmd, &killAfter)
	return cmd
}

// errEnded means that the command ended by itself.
var errEnded = errors.New("the command has ended")

// lead is the subcommand.
func (a *app) lead(ctx context.Context, name string, argv []string, killAfter time.Duration) error {
	h, err := a.newHolder(ctx, argv, killAfter)
	if err != nil {
		return err
	}
	defer h.close(ctx)
	leading, cancel := h.signals.context(ctx)
	defer cancel()
	var out outcome
	var failed error
	ran := false
	err = h.client.Lead(leading, name, func(ctx context.Context, term *pgbaton.Lock) error {
		out, ran, failed = outcome{}, false, nil
		if out, failed = h.run(asked(ctx), name, term); failed != nil {
			return failed
		}
		ran = true
		switch {
		case out.lost != nil:
			if unstarted := new(lostError); !errors.As(out.lost, &unstarted) {
				out.lost = fmt.Errorf("%w; the command was stopped", out.lost)
			}
			a.say("pgbaton lead: %s", plain(out.lost))
			return nil
		case errors.Is(context.Cause(ctx), pgbaton.ErrResigned):
			a.say("pgbaton lead: resigned, as asked")
			return nil
		}
		return errEnded
	})
	switch halted := h.signals.halt(); {
	case failed != nil:
		return h.failure(cannotRun(failed))
	case ran && (halted != nil || errors.Is(err, errEnded)):
		return conclude(out)
	case halted != nil:
		return h.failure(halted)
	}
	return err
}

// asked is closed when the leader is asked to resign. The end of the term for another reason is the grant's own.
func asked(ctx context.Context) <-chan struct{} {
	ask := make(chan struct{})
	context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), pgbaton.ErrResigned) {
			close(ask)
		}
	})
	return ask
}
