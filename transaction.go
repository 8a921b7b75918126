package pgbaton

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// rollbackTimeout bounds what is done after the caller's context may have ended.
const rollbackTimeout = 5 * time.Second

// defaultAttempts bounds the retries of Mutate and InTx.
const defaultAttempts = 10

// TxOpts are the settings of [InTx] and [InSQLTx]. Nil means the defaults.
type TxOpts struct {
	// Isolation is the isolation level: pgx.ReadCommitted, pgx.RepeatableRead or pgx.Serializable.
	// Defaults to the session's own, which is read committed unless somebody changed it.
	Isolation pgx.TxIsoLevel

	// ReadOnly makes the transaction read only.
	ReadOnly bool

	// MaxAttempts is how often the transaction is run in all before giving up. Defaults to 10.
	MaxAttempts int

	// RetryConflicts runs the transaction again when fn's error matches ErrConflict, too: for an UpdateVersion
	// whose version was read in the same transaction.
	RetryConflicts bool
}

// InTx runs fn in a transaction and commits it. A transaction that PostgreSQL ended because of a serialization
// failure or a deadlock, or because a table was altered since its statement was prepared, is run again from its start, up to [TxOpts.MaxAttempts] times, after a random pause whose
// bound grows from 4 ms to 250 ms. So fn may run several times: what it does outside of the transaction is done
// again, too. db is a *pgxpool.Pool or a *pgx.Conn, not a pgx.Tx: a part of a transaction cannot be run again.
//
// On success fn returned nil and the transaction is committed.
//
// On failure it is rolled back, also when fn panics or the context has ended, and the error is fn's or the
// server's; it must not be hidden by fn if it is to be retried. [ErrDeadlock] and [ErrConflict] say
// that the last attempt ended with a deadlock or a serialization failure. For a deadlock the error says which
// processes waited for what, and, over a pool and as far as the role may see it, which statement of ours failed and
// what the other runs by now. (The server itself tells the statements only to its log.)
//
// [ErrCommitUnknown] means that it is not known whether the transaction was committed. That is never retried.
func InTx(
	ctx context.Context,
	db interface {
		BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
	},
	opts *TxOpts,
	fn func(ctx context.Context, tx pgx.Tx) error,
) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	r := pgxRunner(db, opts)
	r.fn = fn
	return r.run(ctx, opts)
}

// pgxRunner is a runner without its function.
func pgxRunner(
	db interface {
		BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
	},
	opts *TxOpts,
) *runner[pgx.Tx] {
	options := pgx.TxOptions{IsoLevel: opts.Isolation}
	if opts.ReadOnly {
		options.AccessMode = pgx.ReadOnly
	}
	r := &runner[pgx.Tx]{
		begin: func(ctx context.Context) (pgx.Tx, error) { return db.BeginTx(ctx, options) },
	}
	if pool, ok := db.(*pgxpool.Pool); ok {
		r.observer = pool
	}
	return r
}

// InSQLTx is [InTx] for a *sql.DB. In the transaction, [SQLTx] gives the handle for [LockRow] and the others.
//
// With lib/pq, a transaction whose error fn has swallowed ends with ErrCommitUnknown, though it was rolled back.
func InSQLTx(ctx context.Context, db *sql.DB, opts *TxOpts, fn func(ctx context.Context, tx *sql.Tx) error) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	r := sqlRunner(db, opts)
	r.fn = func(ctx context.Context, tx *boundSQLTx) error { return fn(ctx, tx.tx) }
	return r.run(ctx, opts)
}

// sqlRunner is a runner without its function.
func sqlRunner(db *sql.DB, opts *TxOpts) *runner[*boundSQLTx] {
	options := &sql.TxOptions{ReadOnly: opts.ReadOnly, Isolation: map[pgx.TxIsoLevel]sql.IsolationLevel{
		pgx.ReadCommitted:  sql.LevelReadCommitted,
		pgx.RepeatableRead: sql.LevelRepeatableRead,
		pgx.Serializable:   sql.LevelSerializable,
	}[opts.Isolation]}
	return &runner[*boundSQLTx]{
		begin:    func(ctx context.Context) (*boundSQLTx, error) { return beginSQL(ctx, db, options) },
		observer: SQLDB(db),
	}
}

func (o *TxOpts) withDefaults() (*TxOpts, error) {
	opts := TxOpts{}
	if o != nil {
		opts = *o
	}
	opts.MaxAttempts = cmp.Or(opts.MaxAttempts, defaultAttempts)
	if opts.MaxAttempts < 1 {
		return nil, fmt.Errorf("pgbaton: TxOpts.MaxAttempts is %d: give one or more", opts.MaxAttempts)
	}
	switch opts.Isolation {
	case "", pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable:
		return &opts, nil
	}
	return nil, fmt.Errorf("pgbaton: TxOpts.Isolation %q is none of ReadCommitted, RepeatableRead and Serializable",
		opts.Isolation)
}

// runner runs a function in transactions of one kind.
type runner[H Tx] struct {
	begin    func(ctx context.Context) (H, error)
	fn       func(ctx context.Context, tx H) error
	observer Querier // another connection to look from; nil if there is none
}

func (r *runner[H]) run(ctx context.Context, opts *TxOpts) error {
	for attempt := 1; ; attempt++ {
		err := r.once(ctx, attempt == opts.MaxAttempts)
		retry := err != nil && !errors.Is(err, lockerr.CommitUnknown) &&
			(pgerr.Retryable(err) || pgerr.StalePlan(err) || opts.RetryConflicts && errors.Is(err, lockerr.Conflict))
		switch {
		case !retry:
			return err
		case attempt == opts.MaxAttempts:
			return wrap(err, "run transaction: %d attempts", attempt)
		}
		if ctxErr := backoff.Wait(ctx, attempt); ctxErr != nil {
			return wrap(also(err, ctxErr), "run transaction")
		}
	}
}

// once runs the function in one transaction.
func (r *runner[H]) once(ctx context.Context, last bool) error {
	tx, err := r.begin(ctx)
	if err != nil {
		return wrap(withContext(ctx, pgerr.Explain(err)), "begin transaction")
	}
	over := false
	defer func() {
		if !over { // fn panicked or left its goroutine
			rollback(ctx, tx)
		}
	}()
	err = r.fn(ctx, tx)
	if err == nil {
		err = ctx.Err() // nothing was sent yet, so the outcome is still certain
	}
	if err == nil {
		over = true
		return commit(ctx, tx)
	}
	if last && pgerr.Code(err) == pgerr.DeadlockDetected {
		err = fmt.Errorf("%w%s", err, deadlockStatements(ctx, r.observer, err))
	}
	over = true
	rollback(ctx, tx)
	err = queryEnded(ctx, err)
	if pgerr.Retryable(err) || pgerr.Code(err) == pgerr.StaleToken {
		err = translate(err)
	}
	return err
}

func commit(ctx context.Context, tx Tx) error {
	err := tx.Commit(ctx)
	if err == nil {
		return nil
	}
	err = withContext(ctx, err)
	switch {
	case errors.Is(err, pgx.ErrTxClosed), errors.Is(err, sql.ErrTxDone):
		return wrap(err, "commit transaction: fn has ended it itself")
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return wrap(err, "commit transaction: fn returned nil after a statement had failed")
	case pgerr.CommitUnknown(err):
		return wrap(fmt.Errorf("%w: %w", lockerr.CommitUnknown, err), "commit transaction")
	}
	return wrap(translate(err), "commit transaction")
}

// rollback ends the transaction, also after the context has ended. An error needs no report: the server
// rolls back what was not committed, and both drivers close a connection that cannot.
func rollback(ctx context.Context, tx Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	_ = tx.Rollback(ctx)
}

// boundSQLTx ends a *sql.Tx within the context of Commit or Rollback. database/sql binds a transaction to the
// context of its begin instead, and would roll it back behind fn's back.
type boundSQLTx struct {
	sqlTx

	cancel context.CancelFunc // ends the context of the begin
}

func beginSQL(ctx context.Context, db *sql.DB, options *sql.TxOptions) (*boundSQLTx, error) {
	txCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	tx, err := db.BeginTx(txCtx, options)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &boundSQLTx{sqlTx{sqlQuerier{tx}, tx}, cancel}, nil
}

func (t *boundSQLTx) Commit(ctx context.Context) error   { return t.end(ctx, t.tx.Commit) }
func (t *boundSQLTx) Rollback(ctx context.Context) error { return t.end(ctx, t.tx.Rollback) }

func (t *boundSQLTx) end(ctx context.Context, end func() error) error {
	stop := context.AfterFunc(ctx, t.cancel)
	defer t.cancel()
	defer stop()
	return end()
}

// Ours is the aborted one. The other's transaction is shown only while it is still the one of the deadlock: a
// pooled session is soon used for something else.
const sqlDeadlockStatements = `
WITH party AS MATERIALIZED (
    SELECT pid, xact_start, query_start, query, state = 'idle in transaction (aborted)' AS aborted
    FROM pg_catalog.pg_stat_activity
    WHERE pid::text = ANY (string_to_array($1::text, ',')) AND pid <> pg_backend_pid())
SELECT pid, CASE WHEN aborted THEN 'ran' ELSE 'now runs' END, query
FROM party
WHERE aborted OR xact_start <= (SELECT max(query_start) FROM party WHERE aborted)
ORDER BY NOT aborted, pid`

// observeTimeout bounds the look at the parties of a deadlock.
const observeTimeout = time.Second

var firstNumber = regexp.MustCompile(`^\D*(\d+)`)

// deadlockStatements returns what the parties of a deadlock ran. The server writes their statements to its log
// only; its answer names the processes, one in each line of the detail ("Process 4711 waits for …", or the same
// in another language). Our own session still shows its failed statement until it is rolled back.
func deadlockStatements(ctx context.Context, observer Querier, err error) string {
	if observer == nil {
		return ""
	}
	var pids []string
	for line := range strings.Lines(pgerr.Detail(err)) {
		if match := firstNumber.FindStringSubmatch(line); match != nil {
			pids = append(pids, match[1])
		}
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	rows, queryErr := observer.Query(ctx, sqlDeadlockStatements, strings.Join(pids, ","))
	if queryErr != nil {
		return "" // what is missing is only an explanation
	}
	defer rows.Close()
	var text strings.Builder
	for rows.Next() {
		var (
			pid         int32
			when, query string
		)
		if rows.Scan(&pid, &when, &query) == nil {
			fmt.Fprintf(&text, "; process %d %s: %s", pid, when, strings.Join(strings.Fields(query), " "))
		}
	}
	return text.String()
}
