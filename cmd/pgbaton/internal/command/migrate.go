package command

import (
	"bufio"
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
	"github.com/pgbaton/pgbaton/internal/migrator"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/session"
)

func (a *app) migrateCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "migrate", Short: "make the schema pgbaton, change it, see its version",
		Long: `The schema pgbaton holds what locks need beside PostgreSQL's own: tokens, semaphores, leaders, jobs, fences, leases. The role
that migrates owns it; the role of a service gets SELECT pgbaton.grant_service('role') and nothing else.`,
		Example: `  pgbaton migrate up
  pgbaton migrate version
  pgbaton migrate sql > pgbaton.sql`,
		Args: arguments(), RunE: needsSubcommand,
	}
	up := &cobra.Command{
		Use: "up", Short: "bring the schema up to date",
		Long: `Makes the schema pgbaton, or brings an older one up to date. Each file is one transaction. It can be run again and at the same
time as others, golang-migrate too, and leaves a newer schema alone.`,
		Example: "  pgbaton migrate up", Args: arguments(), RunE: a.do(a.migrateUp),
	}
	version := &cobra.Command{
		Use: "version", Short: "show the schema's version and this program's",
		Long:    "Shows the version of the schema, the oldest client that it serves, and what this program needs. The exit status is 1 if they do not fit.",
		Example: "  pgbaton migrate version\n  pgbaton migrate version --json", Args: arguments(), RunE: a.do(a.migrateVersion),
	}
	a.jsonFlag(up, version)
	parent.AddCommand(up, a.migrateDownCommand(), version, a.migrateSQLCommand(), a.migrateEngineCommand())
	return parent
}

func (a *app) migrateUp(ctx context.Context, _ []string) error {
	config, err := a.database()
	if err != nil {
		return err
	}
	if err := pgbaton.Migrate(ctx, config.ConnString()); err != nil {
		return err
	}
	return a.migrateVersion(ctx, nil)
}

// versionView is what there is, and what this program needs.
type versionView struct {
	Set          string `json:"set,omitempty"`
	Schema       int    `json:"schema"`
	OldestClient int    `json:"oldest_client"`
	Client       int    `json:"client"`
	Newest       int64  `json:"newest"`
	Serves       bool   `json:"serves"`
}

const (
	sqlSchemaVersion = `SELECT v.version, v.oldest_client FROM pgbaton.schema_version() AS v`
	sqlIsPortable    = `SELECT count(*) > 0 FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgbaton' AND c.relname = 'portable'`
)

// lookAtVersion returns the schema's version, 0 if there is no schema.
func lookAtVersion(ctx context.Context, conn *pgx.Conn) (versionView, error) {
	var portable bool
	if err := conn.QueryRow(ctx, sqlIsPortable).Scan(&portable); err != nil {
		return versionView{}, fmt.Errorf("look for the schema pgbaton: %w", err)
	}
	view := versionView{Set: "full", Client: session.ClientVersion}
	if portable {
		view.Set, view.Client = "portable", session.PortableVersion
	}
	var err error
	if view.Newest, err = migrator.SetOf(portable).Newest(); err != nil {
		return view, err
	}
	err = conn.QueryRow(ctx, sqlSchemaVersion).Scan(&view.Schema, &view.OldestClient)
	switch code := pgerr.Code(err); {
	case code == pgerr.UndefinedSchema || code == pgerr.UndefinedFunction:
		view.Set = ""
	case err != nil:
		return view, fmt.Errorf("read the schema's version: %w", pgerr.Schema(err))
	}
	view.Serves = view.Schema >= view.Client && view.OldestClient <= view.Client
	return view, nil
}

func (a *app) migrateVersion(ctx context.Context, _ []string) error {
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	view, err := lookAtVersion(ctx, conn)
	if err != nil {
		return err
	}
	err = a.emit(view, func() error {
		switch {
		case view.Schema == 0:
			return a.print("There is no schema pgbaton in this database: pgbaton migrate up\n")
		case view.Schema < view.Client:
			return a.print("The schema pgbaton has version %d, and this program needs %d: pgbaton migrate up\n", view.Schema, view.Client)
		case view.OldestClient > view.Client:
			return a.print("The schema pgbaton has version %d and serves clients from %d on, and this program is one of %d: use a newer one\n",
				view.Schema, view.OldestClient, view.Client)
		}
		return a.print("The schema pgbaton has version %d (%s set) and serves this program, which needs %d.\n", view.Schema, view.Set, view.Client)
	})
	if err == nil && !view.Serves {
		err = exit(exitFailed, nil)
	}
	return err
}

func (a *app) migrateDownCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "down VERSION", Short: "take the schema back to an older version",
		Long: `Takes back what the migrations after VERSION have made, the newest first, each in one transaction; 0 drops the schema, with
all semaphores, leaders, jobs and fences. Clients of newer versions fail from then on. It asks on a terminal, elsewhere it needs --yes.`,
		Example: "  pgbaton migrate down 13\n  pgbaton migrate down 0 --yes", Args: arguments("VERSION"),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		to, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || to < 0 {
			return cli.Usagef("%q is no version", args[0])
		}
		config, err := a.database()
		if err != nil {
			return err
		}
		conn, err := migrator.Connect(ctx, config)
		if err != nil {
			return err
		}
		defer migrator.Close(ctx, conn)
		view, err := lookAtVersion(ctx, conn)
		if err != nil {
			return err
		}
		if int64(view.Schema) <= to {
			return a.tookBack(int64(view.Schema), int64(view.Schema))
		}
		if err := a.confirm(yes, "Take the schema pgbaton of database %q back from version %d to %d?", config.ConnConfig.Database, view.Schema, to); err != nil {
			return err
		}
		from, err := migrator.SetOf(view.Set == "portable").Revert(ctx, conn, to)
		if err != nil {
			return err
		}
		return a.tookBack(from, to)
	})
	a.jsonFlag(cmd)
	return cmd
}

// tookBack says from where to where the schema was taken back.
func (a *app) tookBack(from, to int64) error {
	return a.emit(struct {
		From int64 `json:"from"`
		To   int64 `json:"to"`
	}{from, to}, func() error {
		if from == to {
			return a.print("The schema pgbaton has version %d; there is nothing to take back.\n", to)
		}
		return a.print("The schema pgbaton was taken back from version %d to %d.\n", from, to)
	})
}

// confirm asks on a terminal.
func (a *app) confirm(yes bool, format string, args ...any) error {
	if yes {
		return nil
	}
	if !terminal(a.std.In) {
		return cli.Usagef("this changes what others use: say --yes where there is no terminal to ask on")
	}
	_, _ = fmt.Fprintf(a.std.Err, format+" [y/N] ", args...)
	answer, err := bufio.NewReader(a.std.In).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); err != nil || answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

func (a *app) migrateSQLCommand() *cobra.Command {
	var down, portable bool
	var from, to int64
	cmd := &cobra.Command{
		Use: "sql", Short: "print the migrations, for other tools",
		Long: `Prints the SQL of the migrations, to be read, or to be run by another tool: each file as one transaction. It needs no
database. --portable has those for engines that lack PL/pgSQL, sequences or advisory locks.`,
		Example: "  pgbaton migrate sql > pgbaton.sql\n  pgbaton migrate sql --from 13\n  pgbaton migrate sql --down --to 13", Args: arguments(),
	}
	flags := cmd.Flags()
	flags.BoolVar(&down, "down", false, "print the way back")
	flags.BoolVar(&portable, "portable", false, "print the portable set")
	flags.Int64Var(&from, "from", 0, "what comes after this `version`")
	flags.Int64Var(&to, "to", -1, "up to this `version`; with --down, back to it")
	cmd.RunE = a.do(func(_ context.Context, _ []string) error {
		set := migrator.SetOf(portable)
		newest, err := set.Newest()
		if err != nil {
			return err
		}
		switch {
		case down && !flags.Changed("from"):
			from, to = newest, max(to, 0)
		case to < 0 && !down:
			to = newest
		}
		if down != (to < from) {
			return cli.Usagef("there is nothing from version %d to %d", from, to)
		}
		names, texts, err := set.SQL(from, to)
		if err != nil {
			return err
		}
		for i, text := range texts {
			if err := a.print("-- %s\nBEGIN;\n\n%s\nCOMMIT;\n\n", names[i], strings.TrimSpace(text)); err != nil {
				return err
			}
		}
		return nil
	})
	return cmd
}

const (
	sqlEngineRecord = `SELECT e.engine, e.recorded_by, e.recorded_at FROM pgbaton.engine_record() AS e`
	sqlChangeEngine = `SELECT coalesce(pgbaton.change_engine($1), '')`
)

// engineView is the record of the engine.
type engineView struct {
	Engine     string    `json:"engine"`
	RecordedBy string    `json:"recorded_by"`
	RecordedAt time.Time `json:"recorded_at"`
}

func (a *app) migrateEngineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "engine [session|lease|both]", Short: "show or change how the database excludes processes",
		Long: `Shows by which engine locks exclude in this database: session (advisory locks of sessions) or lease (rows that expire).
With an argument it changes the record. A fleet changes without a moment in which two hold one key, in three steps:

  1. pgbaton migrate engine both
     Clients that are opened from now on take both; those that are there go on.
  2. Restart the services, as a rolling deploy does. Then: pgbaton migrate engine lease (or session)
     It refuses, and names them, as long as clients are there that take locks by the other engine alone.
  3. Restart the services again. It is not urgent.

It is for operators: SELECT pgbaton.grant_operator('role').`,
		Example: "  pgbaton migrate engine\n  pgbaton migrate engine both", ValidArgs: []string{"session", "lease", "both"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return cli.Usagef("takes one argument, not %d", len(args))
			}
			return nil
		},
		RunE: a.do(a.migrateEngine),
	}
	a.jsonFlag(cmd)
	return cmd
}

func (a *app) migrateEngine(ctx context.Context, args []string) error {
	conn, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	changed := false
	if len(args) == 1 {
		var before string
		if err := conn.QueryRow(ctx, sqlChangeEngine, args[0]).Scan(&before); err != nil {
			if hint := pgerr.Hint(err); hint != "" {
				err = fmt.Errorf("%w (%s)", err, hint)
			}
			return fmt.Errorf("change the engine: %w", err)
		}
		changed = before != args[0]
	}
	var view engineView
	err = conn.QueryRow(ctx, sqlEngineRecord).Scan(&view.Engine, &view.RecordedBy, &view.RecordedAt)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("read the record of the engine: %w", pgerr.Schema(err))
	}
	return a.emit(view, func() error {
		if view.Engine == "" {
			return a.print("No engine is recorded: the first lock records one.\n")
		}
		err := a.print("The engine is %s, recorded by %s at %s.\n", view.Engine, view.RecordedBy, view.RecordedAt.UTC().Format(time.RFC3339))
		if err == nil && changed {
			err = a.print("%s\n", nextStep(view.Engine))
		}
		return err
	})
}

// nextStep is what an operator does after a change of the record.
func nextStep(engine string) string {
	if engine == "both" {
		return "Now restart the services, as a rolling deploy does; then: pgbaton migrate engine lease (or session)"
	}
	return "Now restart the services again, when it suits: those of both engines go on as well."
}
