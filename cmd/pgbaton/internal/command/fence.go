package command

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton/internal/cli"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

func (a *app) fenceCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "fence", Short: "see and forget fences",
		Long: `A fence remembers the newest token that a resource has seen, and refuses older ones: a holder that was paused, and
has lost its lock meanwhile, cannot write. The lock of the key invoice/42 has the resource pgbaton:invoice/42.`,
		Example: "  pgbaton fence show\n  pgbaton fence show ledger\n  pgbaton fence prune 30d",
		Args:    arguments(), RunE: needsSubcommand,
	}
	show := &cobra.Command{
		Use: "show [RESOURCE...]", Short: "show the newest token that resources have seen",
		Long: `Shows the newest token that was shown for each resource, and when. Without a RESOURCE it shows all. It needs the right to
read the table pgbaton.fence, which the schema's owner and superusers have.`,
		Example: "  pgbaton fence show\n  pgbaton fence show ledger --json",
		RunE:    a.do(a.fenceShow),
	}
	prune := &cobra.Command{
		Use: "prune AGE", Short: "forget fences that were not used for so long",
		Long: `Forgets the fences that were shown no token for AGE, at least 1h (30d is 30 days). A resource that is forgotten accepts any
token: choose a time that no paused holder outlives. It is for operators: SELECT pgbaton.grant_operator('role').`,
		Example: "  pgbaton fence prune 30d", Args: arguments("AGE"),
		RunE: a.do(a.fencePrune),
	}
	a.jsonFlag(show, prune)
	parent.AddCommand(show, prune)
	return parent
}

const sqlFences = `
SELECT f.resource, f.token, f.seen_at
FROM pgbaton.fence AS f
WHERE $1::text[] IS NULL OR f.resource = ANY ($1)
ORDER BY f.resource`

type fenceView struct {
	Resource string    `json:"resource"`
	Token    int64     `json:"token"`
	SeenAt   time.Time `json:"seen_at"`
}

func (a *app) fenceShow(ctx context.Context, resources []string) error {
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	if len(resources) == 0 {
		resources = nil
	}
	rows, err := conn.Query(ctx, sqlFences, resources)
	if err != nil {
		return listing(err, "fences")
	}
	fences, err := pgx.CollectRows(rows, pgx.RowToStructByPos[fenceView])
	if err != nil {
		return listing(err, "fences")
	}
	return a.emit(fences, func() error {
		var lines [][]string
		for _, f := range fences {
			lines = append(lines, []string{f.Resource, strconv.FormatInt(f.Token, 10), f.SeenAt.UTC().Format(time.RFC3339)})
		}
		return table(a.std.Out, []string{"RESOURCE", "NEWEST TOKEN", "LAST SHOWN"}, lines)
	})
}

const sqlPruneFences = `SELECT pgbaton.prune_fences(make_interval(secs => $1))`

func (a *app) fencePrune(ctx context.Context, args []string) error {
	age, err := parseAge(args[0])
	if err != nil {
		return err
	}
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	var pruned int64
	if err := conn.QueryRow(ctx, sqlPruneFences, age.Seconds()).Scan(&pruned); err != nil {
		return fmt.Errorf("prune fences: %w", pgerr.Schema(err))
	}
	return a.emit(struct {
		Pruned int64 `json:"pruned"`
	}{pruned}, func() error { return a.print("forgot %d fences\n", pruned) })
}

// parseAge reads a time such as 36h or 30d.
func parseAge(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	if number := len(text) - 1; number > 0 && text[number] == 'd' {
		if days, err := strconv.Atoi(text[:number]); err == nil && days > 0 && days < 36500 {
			return time.Duration(days) * day, nil
		}
	}
	age, err := time.ParseDuration(text)
	if err != nil || age <= 0 {
		return 0, cli.Usagef("%q is no time such as 36h or 30d", text)
	}
	return age, nil
}
