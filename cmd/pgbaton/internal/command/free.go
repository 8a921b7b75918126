package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

const freeLong = `Takes a lock, a leader's term or a permit from its holder, wherever that runs, and nothing else. The holder is asked, gives it
back, and is told that it is lost: "freed by an operator", with the --reason. What it runs under the lock has to stop then; all
else that it holds goes on.

A holder that does not answer within 2 s, as a frozen one, can only lose its whole session, with all that is held by it. What
that is is said first. --keep-session never ends a session.

It names the holder and asks on a terminal; elsewhere it needs --yes, which answers both questions. --dry-run changes nothing.
When several hold what KEY names, as with shared locks and permits, --kind, --client and --token choose one.

It is for operators: SELECT pgbaton.grant_operator('role'). Each freeing leaves a row: SELECT * FROM pgbaton.freeings(20).
The exit status is 1 when nobody holds it, when the answer is no, and when the holder does not answer and keeps its session.`

const freeExample = `  pgbaton ls invoice/42
  pgbaton free invoice/42 --dry-run
  pgbaton free invoice/42 --reason 'hangs since noon, see the incident'
  pgbaton free render --kind permit --client worker-7 --yes`

type freeFlags struct {
	dryRun, yes, keepSession   bool
	reason, kind, client       string
	token                      int64
	freshPatience, freshPeriod time.Duration // how long to wait for the name of what was acquired a moment ago, and how often to look
}

func (a *app) freeCommand() *cobra.Command {
	f := freeFlags{freshPatience: 4 * time.Second, freshPeriod: 200 * time.Millisecond} //nolint:mnd // holders publish within two seconds
	cmd := &cobra.Command{
		Use: "free KEY", Short: "take a lock, a term or a permit from its holder", Long: freeLong, Example: freeExample,
		Args: arguments("KEY"), ValidArgsFunction: a.completeNames(1, kindLock, kindTerm, kindPermit),
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would be freed, and free nothing")
	flags.BoolVar(&f.yes, "yes", false, "do not ask")
	flags.BoolVar(&f.keepSession, "keep-session", false, "do not end the session of a holder that does not answer")
	flags.StringVar(&f.reason, "reason", "", "why, for the holder, its log and the record")
	flags.StringVar(&f.kind, "kind", "", "only a lock, a term or a permit: `KIND`")
	flags.StringVar(&f.client, "client", "", "only what the client of this `NAME` holds")
	flags.Int64Var(&f.token, "token", 0, "only the grant of this `TOKEN`")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{kindLock, kindTerm, kindPermit}, cobra.ShellCompDirectiveNoFileComp))
	cmd.MarkFlagsMutuallyExclusive("dry-run", "yes")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		switch {
		case f.kind != "" && f.kind != kindLock && f.kind != kindTerm && f.kind != kindPermit:
			return cli.Usagef("--kind is %q: give %s, %s or %s", f.kind, kindLock, kindTerm, kindPermit)
		case !f.dryRun && !f.yes && !terminal(a.std.In):
			return cli.Usagef("this takes what another one holds: say --yes where there is no terminal to ask on, or --dry-run")
		}
		return a.withClient(ctx, func(c *client) error { return a.free(ctx, c, args[0], f) })
	})
	a.jsonFlag(cmd)
	return cmd
}

// freedView is what was freed, or would be.
type freedView struct {
	DryRun bool       `json:"dry_run"`
	Freed  []lockView `json:"freed"`
	Rest   []lockView `json:"dies_with_session"` // what the holder's session had besides, and has lost if that was ended
}

// free is the subcommand.
func (a *app) free(ctx context.Context, c *client, text string, f freeFlags) error {
	held, waiters, err := c.find(ctx, text, f)
	if err != nil {
		return err
	}
	now, err := c.now(ctx)
	if err != nil {
		return err
	}
	a.say("%s", describe(held, waiters, now))
	if f.dryRun {
		return a.freeDry(ctx, c, held)
	}
	if err := a.confirm(f.yes, "Free it?"); err != nil {
		return err
	}
	freed, err := c.Free(ctx, held, &pgbaton.FreeOpts{Reason: f.reason})
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) && !f.keepSession {
		freed, err = a.freeSession(ctx, c, held, f)
	}
	if err != nil {
		return err
	}
	return a.freed(freed, false)
}

// freeDry says what would be freed.
func (a *app) freeDry(ctx context.Context, c *client, held pgbaton.LockInfo) error {
	all, err := c.Free(ctx, held, &pgbaton.FreeOpts{DryRun: true, EndSession: true})
	if err != nil {
		return err
	}
	return a.freed(all, true)
}

// freeSession ends the session of a holder that has not answered, after saying what goes with it.
func (a *app) freeSession(ctx context.Context, c *client, held pgbaton.LockInfo, f freeFlags) ([]pgbaton.LockInfo, error) {
	all, err := c.Free(ctx, held, &pgbaton.FreeOpts{DryRun: true, EndSession: true})
	if err != nil {
		return nil, err
	}
	a.say("The holder does not answer. %s", goes(all[1:]))
	if err := a.confirm(f.yes, "End its session?"); err != nil {
		return nil, err
	}
	return c.Free(ctx, held, &pgbaton.FreeOpts{Reason: f.reason, EndSession: true})
}

// goes says what a session has besides what is freed.
func goes(others []pgbaton.LockInfo) string {
	if len(others) == 0 {
		return "Nothing else goes with its session."
	}
	return fmt.Sprintf("With its session go %d more: %s.", len(others), names(others))
}

// names lists what is held, if it is much in part.
func names(locks []pgbaton.LockInfo) string {
	const most = 20
	var list []string
	for _, l := range locks[:min(most, len(locks))] {
		list = append(list, what(l))
	}
	if rest := len(locks) - most; rest > 0 {
		list = append(list, fmt.Sprintf("and %d more", rest))
	}
	return strings.Join(list, ", ")
}

// freed prints the result.
func (a *app) freed(all []pgbaton.LockInfo, dry bool) error {
	for i := range all {
		all[i].BlockedBy = nil
	}
	view := freedView{DryRun: dry, Freed: viewsOf(all[:1]), Rest: viewsOf(all[1:])}
	return a.emit(view, func() error {
		switch {
		case dry:
			return a.print("would free: %s\nIf the holder does not answer: %s\n", what(all[0]), goes(all[1:]))
		case len(all) > 1:
			return a.print("freed: %s, and with the session: %s\n", what(all[0]), names(all[1:]))
		}
		return a.print("freed: %s\n", what(all[0]))
	})
}

// describe names the holder, for the question.
func describe(held pgbaton.LockInfo, waiters int, now time.Time) string {
	text := fmt.Sprintf("%s is held by %s", what(held), who(held))
	if held.Session != 0 && held.Client != "" {
		text += fmt.Sprintf(", session %d", held.Session)
	}
	if since := age(held, now); since != "" {
		text += ", for " + since
	}
	if held.Token != 0 {
		text += fmt.Sprintf(", token %d", held.Token)
	}
	return text + fmt.Sprintf("; waiting for it: %d.", waiters)
}

// find returns the one holder that is meant, and how many are known to wait for it. A holder can be asked when it has published
// what it holds: that is waited for.
func (c *client) find(ctx context.Context, text string, f freeFlags) (held pgbaton.LockInfo, waiters int, err error) {
	key, err := parseKey(text)
	if err != nil {
		return held, 0, err
	}
	fresh := time.NewTimer(f.freshPatience)
	defer fresh.Stop()
	look := time.NewTicker(f.freshPeriod)
	defer look.Stop()
	for patient := true; ; {
		locks, err := c.Locks(ctx, nil)
		if err != nil {
			return held, 0, err
		}
		held, waiters, err = choose(locks, key, text, f)
		if err != nil || held.Token != 0 || !patient {
			return held, waiters, err
		}
		select {
		case <-ctx.Done():
			return held, 0, ctx.Err()
		case <-fresh.C:
			patient = false
		case <-look.C:
		}
	}
}

// choose picks the one holder that is meant.
func choose(locks []pgbaton.LockInfo, key pgbaton.Key, text string, f freeFlags) (held pgbaton.LockInfo, waiters int, err error) {
	var found []pgbaton.LockInfo
	for _, l := range locks {
		switch {
		case !concerns(l, key) || f.kind != "" && f.kind != l.Kind:
		case l.State != stateHeld:
			waiters++
		case f.client != "" && f.client != l.Client || f.token != 0 && f.token != int64(l.Token):
		default:
			found = append(found, l)
		}
	}
	switch {
	case len(found) == 0:
		return held, 0, fmt.Errorf("nobody holds %s", cmp.Or(f.chosen(), printable(text)))
	case len(found) > 1:
		var list strings.Builder
		for _, l := range inOrder(unlinked(found)) {
			fmt.Fprintf(&list, "\n  %s, held by %s: --kind %s", what(l), who(l), l.Kind)
			if l.Client != "" {
				fmt.Fprintf(&list, " --client %s", printable(l.Client))
			}
			if l.Token != 0 {
				fmt.Fprintf(&list, " --token %d", l.Token)
			}
		}
		return held, 0, cli.Usagef("%d hold %s: choose one:%s", len(found), printable(text), list.String())
	case found[0].Holder == 0:
		return held, 0, foreign(found[0])
	}
	return found[0], waiters, nil
}

// chosen is what was asked for, if it was more than a key.
func (f freeFlags) chosen() string {
	if f.kind == "" && f.client == "" && f.token == 0 {
		return ""
	}
	return "such a thing: see pgbaton ls"
}

// unlinked is a copy without who waits for whom.
func unlinked(locks []pgbaton.LockInfo) []pgbaton.LockInfo {
	alone := make([]pgbaton.LockInfo, len(locks))
	for i, l := range locks {
		l.BlockedBy = nil
		alone[i] = l
	}
	return alone
}

// foreign says how to free what no client of the library holds, as far as this role can see.
func foreign(l pgbaton.LockInfo) error {
	if strings.HasPrefix(l.Application, "pgbaton/") {
		return fmt.Errorf("%s is held by a client whose name this role may not see: be an operator, SELECT pgbaton.grant_operator('role'), "+
			"or end its session, with all that it holds: SELECT pg_terminate_backend(%d)", what(l), l.Session)
	}
	return fmt.Errorf("%s is held by another program, %s, which cannot be asked; to end its session, with all that it holds: "+
		"SELECT pg_terminate_backend(%d)", what(l), who(l), l.Session)
}
