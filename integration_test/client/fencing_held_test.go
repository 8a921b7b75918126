package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestAssertHeld(t *testing.T) {
	t.Parallel()
	client, other, dsn := pair(t)
	begin, conn := beginPgx(dsn), testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	held := func(lock *pgbaton.Lock) error {
		return begin.once(t, func(tx pgbaton.Tx) error { return lock.Assert(ctx, tx) })
	}

	for key, resource := range map[pgbaton.Key]string{
		pgbaton.Name("invoice/42"): "pgbaton:key:-2627838530059473662",
		pgbaton.ID(7):              "pgbaton:key:7",
		pgbaton.Pair(0, 7):         "pgbaton:pair:0,7",
		pgbaton.Pair(-1, -7):       "pgbaton:pair:-1,-7",
	} {
		lock, err := client.Acquire(ctx, key)
		require.NoError(t, err)
		require.NoError(t, held(lock))
		require.NoError(t, held(lock))
		var token pgbaton.Token
		require.NoError(t, conn.QueryRow(ctx, "SELECT token FROM pgbaton.fence WHERE resource = $1", resource).Scan(&token))
		require.Equal(t, lock.Token(), token)

		// The next holder was granted the key behind this one's back, as on a new primary.
		_, err = conn.Exec(ctx, "SELECT pgbaton.fence($1, $2)", resource, lock.Token()+1)
		require.NoError(t, err)
		err = held(lock)
		require.ErrorIs(t, err, pgbaton.ErrStaleToken)
		require.ErrorContains(t, err, key.String())
		var stale *pgbaton.StaleTokenError
		require.ErrorAs(t, err, &stale)
		require.Equal(t, &pgbaton.StaleTokenError{Resource: resource, Token: token, Newest: token + 1}, stale)

		require.NoError(t, lock.Release(ctx))
		require.ErrorIs(t, held(lock), pgbaton.ErrNotHeld)
		next, err := other.Acquire(ctx, key)
		require.NoError(t, err)
		require.NoError(t, held(next))
		_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_locks
			WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid()
			  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		require.NoError(t, err)
		<-next.Done()
		require.ErrorIs(t, held(next), pgbaton.ErrLost)
	}
}

// Readers do not wait for one another, the next writer waits for them, and they are refused after it.
func TestAssertHeld_Shared(t *testing.T) {
	t.Parallel()
	client, _, dsn := pair(t)
	begin, observer := beginPgx(dsn), testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	var readers []*pgbaton.Lock
	var open []pgbaton.Tx
	for range 3 {
		lock, err := client.AcquireShared(ctx, pgbaton.ID(7))
		require.NoError(t, err)
		tx := begin(t, pgx.ReadCommitted)
		require.NoError(t, lock.Assert(ctx, tx))
		readers, open = append(readers, lock), append(open, tx)
	}
	writer := begin(t, pgx.ReadCommitted)
	newer := readers[2].Token() + 1
	done := inBackground(t, observer, func() error {
		_, err := writer.(pgx.Tx).Exec(ctx, "SELECT pgbaton.fence('pgbaton:key:7', $1)", newer)
		return err
	})
	for _, tx := range open {
		require.Empty(t, done)
		require.NoError(t, tx.Commit(ctx))
	}
	require.NoError(t, <-done)
	require.NoError(t, writer.Commit(ctx))
	for _, lock := range readers {
		err := begin.once(t, func(tx pgbaton.Tx) error { return lock.Assert(ctx, tx) })
		require.ErrorIs(t, err, pgbaton.ErrStaleToken)
	}
}

const sqlLedger = `
CREATE TABLE ledger (id int PRIMARY KEY, balance int NOT NULL DEFAULT 0, fence bigint, "last Token" bigint, version int NOT NULL DEFAULT 1);
CREATE TRIGGER fence_guard BEFORE INSERT OR UPDATE OR DELETE ON ledger
	FOR EACH ROW EXECUTE FUNCTION pgbaton.fence_guard(%s)`

// Every writer of a guarded table shows a token that is not older than the row's.
func TestFenceGuard(t *testing.T) {
	t.Parallel()
	const stale, done = "PB001", ""
	for column, argument := range map[string]string{`fence`: ``, `"last Token"`: `'last Token'`} {
		t.Run(column, func(t *testing.T) {
			t.Parallel()
			ctx, conn := testkit.Context(t), testkit.Connect(t, testkit.Migrated(t))
			for _, c := range []struct {
				name, row, sql string // row is the token of the row that is there
				code           string
				after          any
			}{
				{"Newer", "5", "UPDATE ledger SET COL = 9", done, 9},
				{"Same", "5", "UPDATE ledger SET COL = 5", done, 5},
				{"Older", "5", "UPDATE ledger SET COL = 4", stale, 5},
				{"Removed", "5", "UPDATE ledger SET COL = NULL", stale, 5},
				{"FirstToken", "NULL", "UPDATE ledger SET COL = 5", done, 5},
				{"Mended", "5", "UPDATE ledger SET balance = 7", done, 5},
				{"ShownNewer", "5", "SET LOCAL pgbaton.token = 9; UPDATE ledger SET balance = 7", done, 9},
				{"ShownSame", "5", "SET LOCAL pgbaton.token = 5; UPDATE ledger SET balance = 7", done, 5},
				{"ShownOlder", "5", "SET LOCAL pgbaton.token = 4; UPDATE ledger SET balance = 7", stale, 5},
				{"Fenced", "5", "SELECT pgbaton.fence('x', 9); UPDATE ledger SET balance = 7", done, 9},
				{"FencedTwice", "5", "SELECT pgbaton.fence('x', 9), pgbaton.fence('x', 9); UPDATE ledger SET balance = 7", done, 9},
				{"FencedOlder", "5", "SELECT pgbaton.fence('x', 4); UPDATE ledger SET balance = 7", stale, 5},
				{"FencedByTwo", "5", "SELECT pgbaton.fence('x', 4), pgbaton.fence('y', 9); DELETE FROM ledger", stale, 5},
				{"FencedShared", "5", "SELECT pgbaton.fence('x', 9, shared => true); DELETE FROM ledger", stale, 5},
				{"Insert", "5", "INSERT INTO ledger (id, COL) VALUES (2, 4)", done, 5},
				{"InsertStamped", "5", "SET LOCAL pgbaton.token = 9; DELETE FROM ledger; INSERT INTO ledger (id) VALUES (2)", done, 9},
				{"Upsert", "5", "INSERT INTO ledger (id, COL) VALUES (1, 9) ON CONFLICT (id) DO UPDATE SET COL = excluded.COL", done, 9},
				{"UpsertOlder", "5", "INSERT INTO ledger (id, COL) VALUES (1, 4) ON CONFLICT (id) DO UPDATE SET COL = excluded.COL", stale, 5},
				{"UpsertShownOlder", "5", "SET LOCAL pgbaton.token = 4; INSERT INTO ledger VALUES (1) ON CONFLICT (id) DO UPDATE SET balance = 7", stale, 5},
				{"Delete", "5", "SET LOCAL pgbaton.token = 9; DELETE FROM ledger", done, nil},
				{"DeleteOlder", "5", "SET LOCAL pgbaton.token = 4; DELETE FROM ledger", stale, 5},
				{"DeleteWithout", "5", "DELETE FROM ledger", stale, 5},
				{"DeleteWithoutAny", "NULL", "DELETE FROM ledger", done, nil},
			} {
				t.Run(c.name, func(t *testing.T) {
					run := func(sql string) error { // all of it is one transaction
						_, err := conn.PgConn().Exec(ctx, strings.ReplaceAll(sql, "COL", column)).ReadAll()
						return err
					}
					require.NoError(t, run("DROP TABLE IF EXISTS ledger; TRUNCATE pgbaton.fence"))
					require.NoError(t, run(fmt.Sprintf(sqlLedger, argument)))
					require.NoError(t, run("INSERT INTO ledger (id, COL) VALUES (1, "+c.row+")"))
					err := run(c.sql)
					if c.code != "" {
						var pgErr *pgconn.PgError
						require.ErrorAs(t, err, &pgErr)
						require.Equal(t, c.code, pgErr.Code)
						require.Equal(t, "ledger", pgErr.TableName)
						require.Contains(t, pgErr.Detail, `"newest": 5`)
					} else {
						require.NoError(t, err)
					}
					var after *int
					require.NoError(t, conn.QueryRow(ctx, strings.ReplaceAll("SELECT max(COL) FROM ledger", "COL", column)).Scan(&after))
					if c.after == nil {
						require.Nil(t, after)
					} else {
						require.Equal(t, c.after, *after)
					}
					require.NoError(t, run("UPDATE ledger SET balance = 8"), "the setting ended with the transaction")
				})
			}
		})
	}
}

// Go's own writes to a guarded table say what the trigger says.
func TestFenceGuard_Errors(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	_, err := conn.PgConn().Exec(ctx, fmt.Sprintf(sqlLedger, "")+"; INSERT INTO ledger (id, fence) VALUES (1, 9)").ReadAll()
	require.NoError(t, err)
	ledger, key := pgx.Identifier{"ledger"}, pgbaton.Values{"id": 1}
	context4711 := errors.New("pay invoice 4711")

	_, byVersion := pgbaton.UpdateVersion(ctx, conn, ledger, key, 1, pgbaton.Values{"fence": 5}, nil)
	attempts := 0
	inTx := pgbaton.InTx(ctx, conn, nil, func(ctx context.Context, tx pgx.Tx) error {
		attempts++
		_, err := tx.Exec(ctx, "UPDATE ledger SET balance = 1, fence = 5 WHERE id = 1")
		return errors.Join(context4711, err)
	})
	require.Equal(t, 1, attempts, "it is not run again")
	require.ErrorIs(t, inTx, context4711)
	for _, err := range []error{byVersion, inTx} {
		require.ErrorIs(t, err, pgbaton.ErrStaleToken)
		var stale *pgbaton.StaleTokenError
		require.ErrorAs(t, err, &stale)
		require.Equal(t, &pgbaton.StaleTokenError{Resource: "public.ledger", Token: 5, Newest: 9}, stale)
		var pgErr *pgconn.PgError
		require.ErrorAs(t, err, &pgErr)
	}

	_, err = conn.Exec(ctx, "CREATE TRIGGER misplaced AFTER UPDATE ON ledger FOR EACH ROW EXECUTE FUNCTION pgbaton.fence_guard()")
	require.NoError(t, err)
	_, err = conn.Exec(ctx, "UPDATE ledger SET balance = 2")
	require.ErrorContains(t, err, "trigger misplaced on public.ledger must be BEFORE, FOR EACH ROW")
}
