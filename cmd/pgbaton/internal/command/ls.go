package command

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

const lsLong = `Lists who holds and who waits for what in this database: locks, terms of leaders and permits of all clients, and the advisory
locks of other programs by their numbers. With a KEY it lists what concerns the lock, the leader or the semaphore of that name,
and what its waiters and holders wait for themselves.

Holders are those of the server's own list at this moment. What has lasted for two seconds has its name, its token and since when
as well. A role that is no operator sees the names of its own service only: SELECT pgbaton.grant_operator('role').

--tree shows each holder with those that wait for it below; a waiter that holds something itself has its own waiters below it.
--all adds the sessions of the database that wait for rows, transactions or tables, and the sessions that they wait for.
--watch lists again and again until it is interrupted.`

const lsExample = `  pgbaton ls
  pgbaton ls invoice/42 --tree
  pgbaton ls --watch --all
  pgbaton ls --json | jq '.[] | select(.state == "waiting")'`

type lsFlags struct {
	watch, tree, all bool
	every            time.Duration
}

func (a *app) lsCommand() *cobra.Command {
	var f lsFlags
	const usual, least = 2 * time.Second, 100 * time.Millisecond
	cmd := &cobra.Command{
		Use: "ls [KEY]", Short: "list who holds and who waits for what", Long: lsLong, Example: lsExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.Usagef("takes one argument, not %d", len(args))
			}
			return nil
		},
		ValidArgsFunction: a.completeNames(1, kindLock, kindTerm, kindPermit),
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.watch, "watch", false, "list again and again")
	flags.BoolVar(&f.tree, "tree", false, "show waiters below what they wait for")
	flags.BoolVar(&f.all, "all", false, "show what waits in the database for rows, transactions and tables as well")
	flags.DurationVar(&f.every, "every", usual, "how often, with --watch")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		if f.every < least {
			return cli.Usagef("--every is %v, the least is %v", f.every, least)
		}
		var key pgbaton.Key
		if len(args) == 1 {
			var err error
			if key, err = parseKey(args[0]); err != nil {
				return err
			}
		}
		return a.withClient(ctx, func(c *client) error {
			if f.watch {
				return a.watch(ctx, c, key, f)
			}
			shown, err := a.listing(ctx, c, key, f)
			if err != nil {
				return err
			}
			return a.show(shown, f)
		})
	})
	a.jsonFlag(cmd)
	return cmd
}

// shown is what there was at a time.
type shown struct {
	locks []pgbaton.LockInfo
	now   time.Time // by the database's clock
}

// listing asks the database.
func (a *app) listing(ctx context.Context, c *client, key pgbaton.Key, f lsFlags) (shown, error) {
	locks, err := c.Locks(ctx, &pgbaton.LockFilter{Database: f.all})
	if err != nil {
		return shown{}, err
	}
	if key != (pgbaton.Key{}) {
		locks = about(locks, key)
	}
	s := shown{locks: inOrder(locks)}
	s.now, err = c.now(ctx)
	return s, err
}

// now is the time by the database's clock.
func (c *client) now(ctx context.Context) (now time.Time, err error) {
	err = c.pool.QueryRow(ctx, "SELECT clock_timestamp()", pgx.QueryExecModeExec).Scan(&now) // which poolers can take
	if err != nil {
		return now, fmt.Errorf("read the database's clock: %w", err)
	}
	return now, nil
}

// show prints a listing.
func (a *app) show(s shown, f lsFlags) error {
	return a.emit(viewsOf(s.locks), func() error {
		switch {
		case len(s.locks) == 0:
			return a.print("Nothing is held, and nobody waits.\n")
		case f.tree:
			if err := a.print("%s", tree(s)); err != nil {
				return err
			}
		default:
			if err := table(a.std.Out, []string{"STATE", "WHAT", "BY", "FOR", "TOKEN", "BEHIND"}, lines(s)); err != nil {
				return err
			}
		}
		return a.print("%s", unlisted(s.locks))
	})
}

// lines is a listing as rows of a table.
func lines(s shown) [][]string {
	rows := make([][]string, len(s.locks))
	for i, l := range s.locks {
		rows[i] = []string{l.State, what(l), who(l), age(l, s.now), token(l), behind(s.locks, l)}
	}
	return rows
}

func token(l pgbaton.LockInfo) string {
	if l.Token == 0 {
		return ""
	}
	return strconv.FormatInt(int64(l.Token), 10)
}

// behind says for whom something waits.
func behind(locks []pgbaton.LockInfo, l pgbaton.LockInfo) string {
	const most = 3
	var names []string
	for i, j := range l.BlockedBy {
		if i == most {
			return strings.Join(names, ", ") + fmt.Sprintf(" and %d more", len(l.BlockedBy)-most)
		}
		name := who(locks[j])
		if l.State == stateHeld {
			name = "waits for " + what(locks[j])
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// unlisted says of which clients not all names are known.
func unlisted(locks []pgbaton.LockInfo) string {
	var text strings.Builder
	said := map[string]bool{}
	for _, l := range locks {
		if name := who(l); l.Unlisted > 0 && !said[name] {
			said[name] = true
			fmt.Fprintf(&text, "%s holds or waits for %d more than it publishes by name.\n", name, l.Unlisted)
		}
	}
	return text.String()
}

// clearScreen moves a terminal's cursor to the first line, and clears what is below.
const clearScreen = "\x1b[H\x1b[2J"

// watch lists until it is interrupted, which is its proper end. A listing that fails once there was one is said, and tried again.
func (a *app) watch(ctx context.Context, c *client, key pgbaton.Key, f lsFlags) error {
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for first := true; ; first = false {
		s, err := a.listing(ctx, c, key, f)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (first || errors.Is(err, pgbaton.ErrClosed)):
			return err
		case err != nil:
			a.say("pgbaton ls: %s", plain(err))
		default:
			if err := a.frame(s, f); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// frame prints one listing of many: on a terminal over the one before.
func (a *app) frame(s shown, f lsFlags) error {
	if a.json {
		return a.show(s, f)
	}
	head := s.now.UTC().Format(time.RFC3339) + "\n"
	if terminal(a.std.Out) {
		head = clearScreen + head
	}
	if err := a.print("%s", head); err != nil {
		return err
	}
	if err := a.show(s, f); err != nil {
		return err
	}
	return a.print("\n")
}
