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

func (a *app) waitCommand() *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use: "wait KEY", Short: "wait until a lock is free",
		Long: `Waits until nobody holds the lock of KEY, exclusively or shared, and exits with 0. It stands in line for it like everybody else,
and lets it go at once: others may have it by the time this process has ended. To do something under the lock, use run.

The exit status is 75 when --wait was over first.`,
		Example: "  pgbaton wait nightly-report && echo the report is done\n  pgbaton wait nightly-report --wait 10m || echo it takes long today",
		Args:    arguments("KEY"), ValidArgsFunction: a.completeNames(1, kindLock),
	}
	cmd.Flags().DurationVar(&limit, "wait", 0, "wait no longer than this `time`; default: until interrupted")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		key, err := parseKey(args[0])
		if err != nil {
			return err
		}
		if cmd.Flags().Changed("wait") && limit <= 0 {
			return cli.Usagef("--wait is %v: give a time above 0", limit)
		}
		return a.withClient(ctx, func(c *client) error {
			waiting := ctx
			if limit > 0 {
				var cancel context.CancelFunc
				waiting, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("the wait of %v is over", limit))
				defer cancel()
			}
			began := time.Now()
			lock, err := c.Acquire(waiting, key)
			switch {
			case err == nil:
				if err := lock.Release(ctx); err != nil {
					return err
				}
				return a.emit(struct {
					Key    string  `json:"key"`
					Waited float64 `json:"waited_seconds"`
				}{keyArgument(key), time.Since(began).Seconds()}, func() error { return nil })
			case ctx.Err() == nil && errors.Is(err, pgbaton.ErrNotAcquired):
				return exit(exitNotAcquired, err)
			}
			return err
		})
	})
	a.jsonFlag(cmd)
	return cmd
}

// withClient calls f with a client that is closed afterwards.
func (a *app) withClient(ctx context.Context, f func(*client) error) (err error) {
	c, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if closed := c.close(ctx); err == nil {
			err = closed
		}
	}()
	return f(c)
}

func (a *app) resignCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "resign NAME", Short: "ask a leader to resign",
		Long: `Asks the leader of NAME to resign, wherever it runs, and does not wait for it. The leader hears of it within
milliseconds, behind a pooler within 5 s, and holds back for 2 s, so that another one leads if there is one.

The exit status is 1 when nobody leads.`,
		Example: "  pgbaton resign scheduler", Args: arguments("NAME"), ValidArgsFunction: a.completeNames(1, kindTerm),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		return a.withClient(ctx, func(c *client) error {
			leader, err := c.Leader(ctx, args[0])
			if err == nil {
				err = c.RequestResign(ctx, args[0])
			}
			if errors.Is(err, pgbaton.ErrNotFound) {
				return fmt.Errorf("nobody leads %q", args[0])
			}
			if err != nil {
				return err
			}
			return a.emit(struct {
				Name   string    `json:"name"`
				Leader string    `json:"leader"`
				Since  time.Time `json:"since"`
				Token  int64     `json:"token"`
			}{args[0], leader.Client, leader.Since, int64(leader.Token)}, func() error {
				return a.print("asked %s, which leads %q since %s, to resign\n", leader.Client, args[0], leader.Since.UTC().Format(time.RFC3339))
			})
		})
	})
	a.jsonFlag(cmd)
	return cmd
}
