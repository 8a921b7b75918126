package command

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

func (a *app) semaphoreCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "semaphore", Short: "list, create and resize semaphores",
		Long: "A semaphore has a number of permits; `pgbaton run NAME --semaphore N -- COMMAND` takes one while the command runs.",
		Example: `  pgbaton semaphore create render 8
  pgbaton semaphore ls render
  pgbaton semaphore resize render 12`,
		Args: arguments(), RunE: needsSubcommand,
	}
	ls := &cobra.Command{
		Use: "ls [NAME...]", Short: "list semaphores and their holders",
		Long: `Lists semaphores, how many permits each has, how many are free, and who holds the others. Without a NAME it lists all; that
needs the right to read the table pgbaton.semaphore, which the schema's owner and superusers have.`,
		Example: "  pgbaton semaphore ls\n  pgbaton semaphore ls render --json",
		RunE:    a.do(a.semaphoreList), ValidArgsFunction: a.completeNames(manyNames, kindPermit),
	}
	create := &cobra.Command{
		Use: "create NAME CAPACITY", Short: "create a semaphore",
		Long:    "Creates a semaphore. If there is one of that capacity already, nothing changes; of another one, it fails: see resize.",
		Example: "  pgbaton semaphore create render 8", Args: arguments("NAME", "CAPACITY"),
		RunE: a.do(func(ctx context.Context, args []string) error { return a.semaphoreSet(ctx, args, false) }),
	}
	resize := &cobra.Command{
		Use: "resize NAME CAPACITY", Short: "give a semaphore another capacity",
		Long: `Gives a semaphore another capacity, for everybody. Raising it serves waiters at once. Lowering it takes permits from
nobody: none is granted until fewer are held than the new capacity.`,
		Example: "  pgbaton semaphore resize render 12", Args: arguments("NAME", "CAPACITY"),
		ValidArgsFunction: a.completeNames(1, kindPermit),
		RunE:              a.do(func(ctx context.Context, args []string) error { return a.semaphoreSet(ctx, args, true) }),
	}
	a.jsonFlag(ls, create, resize)
	parent.AddCommand(ls, create, resize)
	return parent
}

// manyNames is more than anybody types.
const manyNames = 1000

// needsSubcommand is the code of a command that only has subcommands.
func needsSubcommand(cmd *cobra.Command, _ []string) error {
	return cli.Usagef("say which of its commands: %s", subcommands(cmd))
}

func subcommands(cmd *cobra.Command) string {
	text := ""
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			if text != "" {
				text += ", "
			}
			text += sub.Name()
		}
	}
	return text
}

// semaphoreView is a semaphore as it is shown.
type semaphoreView struct {
	Name      string       `json:"name"`
	Capacity  int          `json:"capacity"`
	Available int          `json:"available"`
	Holders   []holderView `json:"holders"`
}

type holderView struct {
	Client    string  `json:"client"`
	Permits   int     `json:"permits"`
	Token     int64   `json:"token"`
	ExpiresIn float64 `json:"expires_in_seconds"`
}

const sqlSemaphores = `SELECT s.name FROM pgbaton.semaphore AS s ORDER BY s.name`

func (a *app) semaphoreList(ctx context.Context, names []string) error {
	if len(names) == 0 {
		var err error
		if names, err = a.semaphoreNames(ctx); err != nil {
			return err
		}
	}
	views := make([]semaphoreView, 0, len(names))
	err := a.withClient(ctx, func(c *client) error {
		for _, name := range names {
			view, err := lookAtSemaphore(ctx, c, name)
			if err != nil {
				return err
			}
			views = append(views, view)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.emit(views, func() error {
		var rows [][]string
		for _, v := range views {
			rows = append(rows, []string{v.Name, strconv.Itoa(v.Capacity), strconv.Itoa(v.Available)})
			for _, h := range v.Holders {
				rows = append(rows, []string{
					"", "", "", strconv.Itoa(h.Permits), h.Client,
					(time.Duration(h.ExpiresIn*1000) * time.Millisecond).Round(100 * time.Millisecond).String(),
				})
			}
		}
		return table(a.std.Out, []string{"NAME", "CAPACITY", "FREE", "HELD", "BY", "UNLESS RENEWED FOR"}, rows)
	})
}

func (a *app) semaphoreNames(ctx context.Context) ([]string, error) {
	conn, err := a.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer hangUp(ctx, conn)
	rows, err := conn.Query(ctx, sqlSemaphores)
	if err != nil {
		return nil, listing(err, "semaphores")
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, listing(err, "semaphores")
	}
	return names, nil
}

// listing explains why a table cannot be read.
func listing(err error, what string) error {
	if pgerr.Code(err) == pgerr.InsufficientPrivilege {
		return fmt.Errorf("this role may not list all %s, only the owner of the schema pgbaton and superusers may: name the ones to look at (%w)", what, err)
	}
	return fmt.Errorf("list %s: %w", what, pgerr.Schema(err))
}

func lookAtSemaphore(ctx context.Context, c *client, name string) (semaphoreView, error) {
	semaphore, err := c.Semaphore(ctx, name, 0)
	if err != nil {
		return semaphoreView{}, err
	}
	state, err := semaphore.State(ctx)
	if err != nil {
		return semaphoreView{}, err
	}
	view := semaphoreView{Name: name, Capacity: state.Capacity, Available: state.Available, Holders: []holderView{}}
	for _, h := range state.Holders {
		view.Holders = append(view.Holders, holderView{h.Client, h.Permits, int64(h.Token), h.ExpiresIn.Seconds()})
	}
	return view, nil
}

// semaphoreSet creates or resizes.
func (a *app) semaphoreSet(ctx context.Context, args []string, resize bool) error {
	capacity, err := strconv.Atoi(args[1])
	if err != nil || capacity < 1 {
		return cli.Usagef("the capacity is %q: give a number from 1 on", args[1])
	}
	var view semaphoreView
	err = a.withClient(ctx, func(c *client) error {
		wanted := capacity
		if resize {
			wanted = 0
		}
		semaphore, err := c.Semaphore(ctx, args[0], wanted)
		if err == nil && resize {
			err = semaphore.Resize(ctx, capacity)
		}
		if errors.Is(err, pgbaton.ErrCapacityMismatch) {
			return fmt.Errorf("%w; pgbaton semaphore resize %s %d changes it", err, args[0], capacity)
		}
		if err != nil {
			return err
		}
		view, err = lookAtSemaphore(ctx, c, args[0])
		return err
	})
	if err != nil {
		return err
	}
	return a.emit(view, func() error {
		return a.print("semaphore %q has %d permits, %d of them free\n", view.Name, view.Capacity, view.Available)
	})
}
