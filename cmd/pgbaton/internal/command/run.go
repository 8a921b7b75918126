package command

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

const runLong = `Waits for the lock of KEY, runs COMMAND while it holds it, and releases it. COMMAND is executed as it is given,
without a shell, with the standard input of this process, and finds in its environment PGBATON_KEY,
PGBATON_TOKEN (the fencing token of the grant) and PGBATON_NAME (what this client is called).

HUP, INT, QUIT, TERM, USR1 and USR2 go to COMMAND and all processes of its group. After a signal to stop no
command is started. When COMMAND has ended, what it has left running is killed: nothing of it goes on without
the lock, in the background neither.

When the lock is lost (somebody has ended the session, the server has restarted) COMMAND and all its children are
killed at once, because others may have the lock already. When the server falls silent they get TERM
half a TTL after the last sign of it, less the grace of --kill-after (default: a tenth of the TTL), and then
KILL: before anybody else can have the lock. The same holds when this process is frozen or killed.

The exit status is COMMAND's own, 128 and the number of the signal that has ended it, or
    0   with --once, not due: somebody has run it, or does (with a line on standard error)
   75   not acquired: by --try, or after --wait (-E gives another one)
   76   lost: COMMAND was stopped, or ended without the lock
  125   pgbaton itself failed: wrong use, no connection
  126   COMMAND is not executable
  127   COMMAND was not found`

const runExample = `  # at most one at a time, over all machines; leave if another one runs
  pgbaton run report --try -- ./report.sh --full

  # wait for up to a minute
  pgbaton run invoice/42 --wait 1m -- ./close-invoice 42

  # cron on every machine: once an hour, wherever it is due first
  0 * * * *  pgbaton run hourly-report --once 50m -- ./report.sh

  # at most 3 at a time
  pgbaton run render --semaphore 3 -- ./render page.svg

  # readers that exclude a writer, and not one another
  pgbaton run catalogue --shared -- ./export.sh

  # a shell, where one is wanted; 10 s between TERM and KILL
  pgbaton run backup --kill-after 10s -- sh -c 'pg_dump app | gzip > app.gz'`

type runFlags struct {
	shared             bool
	semaphore, permits int
	try                bool
	wait, atLeast      time.Duration
	once, killAfter    time.Duration
	busyStatus         int
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run KEY [FLAGS] -- COMMAND [ARGUMENT...]", Short: "run a command while a lock is held",
		Long: runLong, Example: runExample, Annotations: map[string]string{runsCommand: ""},
		DisableFlagsInUseLine: true, Args: beforeCommand("KEY"), ValidArgsFunction: a.completeNames(1, kindLock, kindPermit),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		if err := f.check(cmd); err != nil {
			return err
		}
		return a.run(context.WithoutCancel(ctx), args[0], args[1:], f)
	})
	flags := cmd.Flags()
	flags.BoolVar(&f.shared, "shared", false, "share the lock with others that do; excludes those that do not")
	flags.IntVar(&f.semaphore, "semaphore", 0, "take permits of the semaphore KEY, which has `N`; makes it if there is none")
	flags.IntVar(&f.permits, "permits", 1, "how many permits to take, of --semaphore")
	flags.BoolVar(&f.try, "try", false, "do not wait for others")
	flags.DurationVar(&f.wait, "wait", 0, "wait no longer than this `time`, such as 30s; default: until a signal")
	flags.DurationVar(&f.atLeast, "at-least", 0, "hold for this `time` at least, also when COMMAND has ended before")
	flags.DurationVar(&f.once, "once", 0, "run only if the last run by anybody began this `time` ago or earlier")
	flags.IntVarP(&f.busyStatus, "conflict-exit-code", "E", exitNotAcquired, "exit `status` when not acquired")
	holdFlags(cmd, &f.killAfter)
	cmd.MarkFlagsMutuallyExclusive("try", "wait")
	cmd.MarkFlagsMutuallyExclusive("shared", "semaphore", "once")
	cmd.MarkFlagsMutuallyExclusive("at-least", "once")
	return cmd
}

// holdFlags are those of every subcommand that runs a command.
func holdFlags(cmd *cobra.Command, killAfter *time.Duration) {
	cmd.Flags().DurationVar(killAfter, "kill-after", 0,
		"KILL this `time` after a signal to stop that COMMAND outlives; default: never, after a loss at once")
}

// beforeCommand is the check that one argument, called so, is before "--" and a command behind it.
func beforeCommand(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch dash := cmd.ArgsLenAtDash(); {
		case len(args) == 0 || dash == 0:
			return cli.Usagef("%s is missing", name)
		case dash < 0 && len(args) > 1:
			return cli.Usagef("the command comes behind --, for example: %s %s -- %s", cmd.CommandPath(), args[0], "command argument")
		case dash < 0 || len(args) == dash:
			return cli.Usagef("the command is missing, for example: %s %s -- sleep 10", cmd.CommandPath(), args[0])
		case dash > 1:
			return cli.Usagef("there is more than %s before --", name)
		}
		return nil
	}
}

func (f *runFlags) check(cmd *cobra.Command) error {
	set := cmd.Flags().Changed
	switch {
	case set("semaphore") && f.semaphore < 1:
		return cli.Usagef("--semaphore is %d, the least is 1", f.semaphore)
	case set("permits") && !set("semaphore"):
		return cli.Usagef("--permits needs --semaphore")
	case set("permits") && f.permits < 1:
		return cli.Usagef("--permits is %d, the least is 1", f.permits)
	case f.busyStatus < 0 || f.busyStatus > 255:
		return cli.Usagef("--conflict-exit-code is %d; give 0 to 255", f.busyStatus)
	}
	for _, name := range []string{"wait", "at-least", "once", "kill-after"} {
		if d, _ := cmd.Flags().GetDuration(name); set(name) && d <= 0 {
			return cli.Usagef("--%s is %v: give a time above 0", name, d)
		}
	}
	return nil
}

// run is the subcommand.
func (a *app) run(ctx context.Context, key string, argv []string, f runFlags) error {
	if _, err := parseKey(key); err != nil {
		return err
	}
	h, err := a.newHolder(ctx, argv, f.killAfter)
	if err != nil {
		return err
	}
	defer h.close(ctx)
	if f.once > 0 {
		return h.once(ctx, key, f)
	}
	return h.hold(ctx, key, f)
}

// held is a grant that can be released.
type held interface {
	grant
	Release(ctx context.Context) error
}

// hold runs the command under a lock or a permit.
func (h *holder) hold(ctx context.Context, key string, f runFlags) error {
	g, err := h.acquire(ctx, key, f)
	if err != nil {
		return h.refused(err, f.busyStatus)
	}
	until := time.Now().Add(f.atLeast)
	out, err := h.run(nil, key, g)
	if err == nil && out.lost == nil {
		h.linger(g, until)
	}
	released := g.Release(ctx)
	if err != nil {
		return h.failure(cannotRun(err))
	}
	if out.lost == nil && released != nil {
		out.lost = released
	}
	return conclude(out)
}

// acquire takes what the flags say. A signal to stop ends the wait.
func (h *holder) acquire(ctx context.Context, text string, f runFlags) (held, error) {
	waiting, cancel := h.signals.context(ctx)
	defer cancel()
	opened := waiting
	if f.wait > 0 {
		var stop context.CancelFunc
		waiting, stop = context.WithTimeoutCause(waiting, f.wait, f.waited())
		defer stop()
	}
	if f.semaphore > 0 {
		name, err := parseName(text, "--semaphore")
		if err != nil {
			return nil, err
		}
		semaphore, err := h.client.Semaphore(opened, name, f.semaphore)
		if err != nil {
			return nil, err
		}
		if f.try {
			return grantOf(semaphore.TryAcquire(waiting, f.permits))
		}
		return grantOf(semaphore.Acquire(waiting, f.permits))
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, err
	}
	acquire := h.client.Acquire
	switch {
	case f.try && f.shared:
		acquire = h.client.TryAcquireShared
	case f.try:
		acquire = h.client.TryAcquire
	case f.shared:
		acquire = h.client.AcquireShared
	}
	return grantOf(acquire(waiting, key))
}

// waited is why a wait has ended.
func (f *runFlags) waited() error { return fmt.Errorf("the wait of %v is over", f.wait) }

// grantOf keeps a nil of a type from becoming a grant.
func grantOf[G held](g G, err error) (held, error) {
	if err != nil {
		return nil, err
	}
	return g, nil
}

// refused gives the error of an acquire its exit status.
func (h *holder) refused(err error, busyStatus int) error {
	switch halted := h.signals.halt(); {
	case halted != nil && errors.Is(err, context.Canceled):
		return h.failure(halted)
	case errors.Is(err, pgbaton.ErrCapacityMismatch):
		return fmt.Errorf("%w (pgbaton semaphore resize changes it)", err)
	case errors.Is(err, pgbaton.ErrNotAcquired):
		return exit(busyStatus, err)
	}
	return err
}

// linger holds on until a time, unless a signal to stop comes or nothing is held.
func (h *holder) linger(g grant, until time.Time) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.Done():
	case <-h.signals.halted:
	}
}

// conclude is the exit of a command that was started.
func conclude(out outcome) error {
	if out.lost != nil {
		return exit(exitLost, out.lost)
	}
	return exit(out.status, nil)
}

// once runs the command if it is due. A run of others is not waited for, since it is the one that was due; what --wait bounds is the time until
// the command begins, while the server cannot be reached.
func (h *holder) once(ctx context.Context, key string, f runFlags) error {
	name, err := parseName(key, "--once")
	if err != nil {
		return err
	}
	waiting, cancel := h.signals.context(ctx)
	defer cancel()
	waiting, stop := context.WithCancelCause(waiting)
	defer stop(nil)
	began := func() bool { return false }
	if f.wait > 0 {
		began = time.AfterFunc(f.wait, func() { stop(f.waited()) }).Stop
	}
	var out outcome
	var failed error
	ran := false
	err = h.client.Once(waiting, name, f.once, func(_ context.Context, lock *pgbaton.Lock) error {
		began()
		if out, failed = h.run(nil, key, lock); failed != nil {
			return failed
		}
		ran = true
		if out.lost != nil {
			return out.lost
		}
		if out.status != 0 {
			return fmt.Errorf("exit status %d", out.status)
		}
		return nil
	})
	var notDue *pgbaton.NotDueError
	switch {
	case failed != nil:
		return h.failure(cannotRun(failed))
	case ran && out.lost == nil && errors.Is(err, pgbaton.ErrLost):
		out.lost = err
		return conclude(out)
	case ran:
		return conclude(out)
	case errors.As(err, &notDue):
		h.app.say("pgbaton run: %q is not due: %v", name, notDue)
		return nil
	}
	return h.refused(err, f.busyStatus)
}
