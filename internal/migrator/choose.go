package migrator

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/migrations"
)

// The names of the sets of migrations.
const (
	fullSet     = "full"
	portableSet = "portable"
)

// Set is a set of migrations, and why it is the one for a database.
type Set struct {
	Name   string // "full" or "portable"
	Reason string
	New    bool // the database has neither
	files  fs.FS
}

// Choose returns the set that the database has or, where it has none, the one that the server can run: the full set, if the server has all
// that this needs. What the server has is tried, in transactions that are rolled back; its name and its version say nothing.
func Choose(ctx context.Context, conn *pgx.Conn, config *pgxpool.Config) (Set, error) {
	has, err := there(ctx, conn)
	if err != nil {
		return Set{}, err
	}
	lacking := ""
	if has == "" {
		if lacking, err = lacks(ctx, conn, config); err != nil {
			return Set{}, err
		}
	}
	switch {
	case has == portableSet:
		return Set{Name: portableSet, Reason: "the database has it", files: migrations.Portable()}, nil
	case lacking != "":
		return Set{Name: portableSet, Reason: lacking, New: true, files: migrations.Portable()}, nil
	case has == fullSet:
		return Set{Name: fullSet, Reason: "the database has it", files: migrations.FS}, refuseVersion(conn)
	}
	return Set{Name: fullSet, Reason: "the server has all that it needs", New: true, files: migrations.FS}, refuseVersion(conn)
}

// there returns which set the database has, as its catalog says, "" for neither.
func there(ctx context.Context, conn *pgx.Conn) (string, error) {
	const sqlThere = `
SELECT coalesce(max(CASE c.relname WHEN 'portable' THEN 'portable' ELSE 'full' END), '') FROM pg_catalog.pg_class AS c
WHERE c.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'pgbaton') AND c.relname IN ('portable', 'token')`
	set, err := try(ctx, conn, sqlThere)
	if err != nil {
		return "", fmt.Errorf("look for the schema pgbaton: %w", err)
	}
	return set, nil
}

// mostTries is how often a transaction is tried that others, or the role's statement_timeout, have ended.
const mostTries = 20

// undecided reports whether an error says nothing about what the server has: others, or the role's statement_timeout, have ended the try.
func undecided(err error) bool {
	return pgerr.Retryable(err) || pgerr.Code(err) == pgerr.QueryCanceled
}

// insist tries something, again as long as that decides nothing.
func insist(once func() error) (err error) {
	for range mostTries {
		if err = once(); !undecided(err) {
			break
		}
	}
	return err
}

// try runs statements in a transaction that is rolled back, and returns the last one's only value.
func try(ctx context.Context, conn *pgx.Conn, statements ...string) (value string, err error) {
	err = insist(func() error {
		value, err = tryOnce(ctx, conn.PgConn(), statements)
		return err
	})
	return value, err
}

// names has names mean what they say, and beginPortable begins a transaction on an engine that need not have PostgreSQL's settings.
const (
	names         = "; SET LOCAL search_path = pg_catalog, pg_temp"
	beginPortable = "BEGIN READ WRITE; SET LOCAL statement_timeout = 0" + names
)

// beginTry begins a transaction in which something is tried, with the settings that the migrations have where the server knows these: a
// setting of the role must not look like something that the server lacks.
func beginTry(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := ask(ctx, conn, beginPinned(conn)+names)
	if err != nil && pgerr.Code(err) != pgerr.QueryCanceled && !conn.IsClosed() {
		if err = undo(ctx, conn); err == nil {
			_, err = ask(ctx, conn, beginPortable)
		}
	}
	return err
}

// tryOnce runs statements as the migrations would run them.
func tryOnce(ctx context.Context, conn *pgconn.PgConn, statements []string) (value string, err error) {
	err = beginTry(ctx, conn)
	for _, sql := range statements {
		if err != nil {
			break
		}
		value, err = ask(ctx, conn, sql)
	}
	if ended := undo(ctx, conn); err == nil {
		err = ended
	}
	return value, err
}

// undo rolls back, if there is anything to.
func undo(ctx context.Context, conn *pgconn.PgConn) error {
	if conn.IsClosed() || conn.TxStatus() == 'I' {
		return nil
	}
	_, err := ask(ctx, conn, "ROLLBACK")
	return err
}

// ask runs statements and returns the only value of the last one, "" if it has none.
func ask(ctx context.Context, conn *pgconn.PgConn, sql string) (string, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return "", err
	}
	if rows := results[len(results)-1].Rows; len(rows) == 1 && len(rows[0]) == 1 {
		return string(rows[0][0]), nil
	}
	return "", nil
}

// lacks returns what the server lacks of that which the full set needs, "" if nothing. An error is one of the connection.
func lacks(ctx context.Context, conn *pgx.Conn, config *pgxpool.Config) (string, error) {
	var lacking []string
	var lost error // why nobody knows
	note := func(what string, err error) {
		switch {
		case err == nil || lost != nil:
		case conn.IsClosed() || ctx.Err() != nil || undecided(err):
			lost = err
		default:
			lacking = append(lacking, fmt.Sprintf("%s (%s)", what, lockerr.Line(err)))
		}
	}
	_, err := try(ctx, conn, "DO LANGUAGE plpgsql 'BEGIN NULL; END'")
	note("the language plpgsql", err)
	place := "pgbaton_probe_" + strconv.FormatUint(rand.Uint64(), 36) //nolint:gosec // only to be nobody else's
	_, err = try(ctx, conn, "CREATE SCHEMA "+place)
	switch {
	case pgerr.Code(err) == pgerr.InsufficientPrivilege: // the migration will say so
	case err != nil:
		note("transactions that make a schema", err)
	default:
		_, err = try(ctx, conn, "CREATE SCHEMA "+place, "CREATE SEQUENCE "+place+".q AS bigint INCREMENT BY 32 CACHE 1 NO CYCLE", "SELECT nextval('"+place+".q')")
		note("sequences", err)
		note("UNLOGGED tables", tryUnlogged(ctx, conn, place))
	}
	sessions, transactions, err := tryLocks(ctx, conn, config)
	note("advisory locks of sessions", sessions)
	note("advisory locks of transactions", transactions)
	switch lost = cmp.Or(lost, err, ctx.Err()); {
	case lost != nil:
		return "", fmt.Errorf("try out what the server has: %w", lost)
	case len(lacking) == 0:
		return "", nil
	}
	return "the server lacks " + strings.Join(lacking, ", "), nil
}

// tryUnlogged makes sure that the word means something: some engines take it and do nothing.
func tryUnlogged(ctx context.Context, conn *pgx.Conn, place string) error {
	kept, err := try(ctx, conn, "CREATE SCHEMA "+place, "CREATE UNLOGGED TABLE "+place+".t (n integer)", `SELECT c.relpersistence::text FROM pg_class AS c
WHERE c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = '`+place+`') AND c.relname = 't'`)
	if err == nil && kept != "u" {
		err = fmt.Errorf("the word is taken and means nothing")
	}
	return err
}
