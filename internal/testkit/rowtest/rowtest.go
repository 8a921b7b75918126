// Package rowtest is the conformance suite for what pgbaton does inside the caller's own transactions: row locks,
// optimistic updates, transaction locks, fences and retried transactions. TestAPI_HandlesAreCovered in the root
// module holds that every function of the surface that takes a Tx or a Querier is called here. integration_test/rows runs
// the suite over every handle to the database, of pgx and of other drivers.
package rowtest

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Way is one way into a database.
type Way struct {
	// With calls f with the handle under test. If that is a transaction, it is committed afterwards.
	With func(t *testing.T, f func(q pgbaton.Querier))
	// Begin begins a transaction of the way's driver.
	Begin func(t *testing.T) pgbaton.Tx
	// InTx is pgbaton.InTx or pgbaton.InSQLTx.
	InTx func(ctx context.Context, opts *pgbaton.TxOpts, fn func(ctx context.Context, tx pgbaton.Tx) error) error
}

// Run runs the suite over one way. open makes the way for a database, and ends with the test.
func Run(t *testing.T, server string, open func(t *testing.T, dsn string) Way) {
	t.Helper()
	dsn := testkit.MigratedOn(t, server)
	s := &suite{way: open(t, dsn), pool: newPool(t, dsn)}
	var err error
	s.client, err = pgbaton.New(context.Background(), s.pool, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.client.Close(context.Background()) })
	// The group ends before the database is dropped, though its tests are parallel.
	t.Run("Suite", func(t *testing.T) {
		s.lockRow(t)
		s.lockRowWait(t)
		s.lockRows(t)
		s.claimRows(t)
		s.updateVersion(t)
		s.races(t)
		s.mutate(t)
		s.inTx(t)
		s.badInput(t)
		s.severalRows(t)
		s.guarded(t)
		s.lockedTable(t)
		s.foreign(t)
		s.partitions(t)
		s.names(t)
		s.locks(t)
		s.fences(t)
	})
}

type suite struct {
	way    Way
	pool   *pgxpool.Pool   // to prepare and to look, beside the way
	client *pgbaton.Client // has what can be shown in a transaction
}

// account is the row of the suite's main table.
type account struct {
	ID      int64
	Owner   string
	Note    *string
	Balance int `db:"balance"`
	Data    []byte
	Opened  time.Time
	Version int64
	Ignored func() `db:"-"`
}

// bundle is one test's own table.
type bundle struct {
	*suite

	table pgx.Identifier
}

// setup makes a table of ten accounts, in a schema of its own whose name has to be quoted.
func (s *suite) setup(t *testing.T) (context.Context, *bundle) {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 4*testkit.Patience)
	t.Cleanup(cancel)
	b := &bundle{s, pgx.Identifier{"s " + strings.ToLower(rand.Text()[:12]), `a"b.Accounts`}}
	b.exec(ctx, t, "CREATE SCHEMA "+pgx.Identifier{b.table[0]}.Sanitize())
	b.exec(ctx, t, "CREATE TABLE "+b.name()+` (
		id bigint PRIMARY KEY, owner text NOT NULL, note text, balance integer NOT NULL, data bytea NOT NULL,
		opened timestamptz NOT NULL, version integer NOT NULL DEFAULT 1, "not read" point)`)
	b.exec(ctx, t, "INSERT INTO "+b.name()+` SELECT i, 'owner ' || i, NULL, 100, '\x0102', '2026-01-02T03:04:05Z', 1
		FROM generate_series(1, 10) i`)
	return ctx, b
}

func (b *bundle) name() string { return b.table.Sanitize() }

func (b *bundle) exec(ctx context.Context, t *testing.T, sql string) {
	t.Helper()
	_, err := b.pool.Exec(ctx, sql)
	require.NoError(t, err)
}

// hold locks or changes rows in a transaction of somebody else's, which ends with the test at the latest.
func (b *bundle) hold(ctx context.Context, t *testing.T, sql string) pgx.Tx {
	t.Helper()
	conn, err := pgx.ConnectConfig(ctx, b.pool.Config().ConnConfig.Copy())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close(context.WithoutCancel(ctx)) })
	tx, err := conn.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, sql)
	require.NoError(t, err)
	return tx
}

// background runs f beside the test, which ends after it.
func (b *bundle) background(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	t.Cleanup(func() { <-done })
}

// begin begins a transaction that ends with the test.
func (b *bundle) begin(t *testing.T) pgbaton.Tx {
	t.Helper()
	tx := b.way.Begin(t)
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// read is one value, read beside the way.
func read[T any](ctx context.Context, t *testing.T, b *bundle, sql string) T {
	t.Helper()
	var value T
	require.NoError(t, b.pool.QueryRow(ctx, sql).Scan(&value))
	return value
}

// awaitWaiter returns when a session waits for a lock of the given transaction.
func (b *bundle) awaitWaiter(ctx context.Context, t *testing.T, holder pgx.Tx) {
	t.Helper()
	pid := holder.Conn().PgConn().PID()
	require.Eventually(t, func() bool {
		var waits bool
		err := b.pool.QueryRow(ctx, `SELECT EXISTS (
			SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))`, int32(pid)).Scan(&waits)
		return err == nil && waits
	}, testkit.Patience, 5*time.Millisecond)
}

func exec(ctx context.Context, t *testing.T, q pgbaton.Querier, sql string) {
	t.Helper()
	rows, err := q.Query(ctx, sql)
	require.NoError(t, err)
	rows.Close()
	require.NoError(t, rows.Err())
}

func queryString(ctx context.Context, t *testing.T, q pgbaton.Querier, sql string) string {
	t.Helper()
	var value string
	require.NoError(t, q.QueryRow(ctx, sql).Scan(&value))
	return value
}
