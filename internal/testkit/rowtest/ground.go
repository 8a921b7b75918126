package rowtest

import (
	"context"
	"crypto/rand"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// as makes a role that may use the bundle's table, and a transaction that works in its name.
func (b *bundle) as(ctx context.Context, t *testing.T) (role string, begin func() pgbaton.Tx) {
	t.Helper()
	role = "pgbaton_test_" + strings.ToLower(rand.Text())
	b.exec(ctx, t, "CREATE ROLE "+role)
	t.Cleanup(func() {
		b.exec(context.WithoutCancel(ctx), t, "DROP OWNED BY "+role)
		b.exec(context.WithoutCancel(ctx), t, "DROP ROLE "+role)
	})
	b.exec(ctx, t, "GRANT USAGE ON SCHEMA "+pgx.Identifier{b.table[0]}.Sanitize()+" TO "+role)
	b.exec(ctx, t, "GRANT ALL ON "+b.name()+" TO "+role)
	return role, func() pgbaton.Tx {
		tx := b.begin(t)
		exec(ctx, t, tx, "SET LOCAL ROLE "+role)
		return tx
	}
}

// guarded are rows that can be seen and not be locked or written.
func (s *suite) guarded(t *testing.T) {
	t.Helper()
	t.Run("RowSecurity/IsNamed", func(t *testing.T) {
		ctx, b := s.setup(t)
		role, begin := b.as(ctx, t)
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ENABLE ROW LEVEL SECURITY")
		b.exec(ctx, t, "CREATE POLICY see ON "+b.name()+" FOR SELECT TO "+role+" USING (true)")
		b.exec(ctx, t, "CREATE POLICY change ON "+b.name()+" FOR UPDATE TO "+role+" USING (id > 1)")
		b.exec(ctx, t, "CREATE POLICY remove ON "+b.name()+" FOR DELETE TO "+role+" USING (id > 1)")
		const policy = "policy of row security"
		for _, wait := range waits {
			opts := &pgbaton.RowOpts{Wait: wait}
			tx := begin()
			_, err := pgbaton.LockRow[account](ctx, tx, b.table, keyOne, opts)
			requireUseless(t, err, policy)
			_, err = pgbaton.LockRows[account](ctx, tx, b.table, []pgbaton.Values{{"id": 3}, keyOne}, opts)
			requireUseless(t, err, policy)
			got, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 2}, opts)
			require.NoError(t, err)
			require.Equal(t, int64(2), got.ID)
			_, err = pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 99}, opts)
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
			require.NoError(t, tx.Rollback(ctx))
		}
		b.requireNotWritten(ctx, t, begin, policy)
		// Taken is still told from forbidden.
		b.hold(ctx, t, "SELECT FROM "+b.name()+" WHERE id = 2 FOR UPDATE")
		tx := begin()
		_, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 2}, &pgbaton.RowOpts{Wait: pgbaton.NoWait})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		claimed, err := pgbaton.ClaimRows[int](ctx, tx, b.table, 20, &pgbaton.ClaimOpts{OrderBy: "id", Column: "id"})
		require.NoError(t, err)
		require.Equal(t, []int{3, 4, 5, 6, 7, 8, 9, 10}, claimed)
		require.NoError(t, tx.Rollback(ctx))
	})
	t.Run("Trigger/IsNamed", func(t *testing.T) {
		ctx, b := s.setup(t)
		function := pgx.Identifier{b.table[0], "keep"}.Sanitize() + "()"
		b.exec(ctx, t, "CREATE FUNCTION "+function+" RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
		b.exec(ctx, t, "CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON "+b.name()+" FOR EACH ROW EXECUTE FUNCTION "+function)
		b.requireNotWritten(ctx, t, func() pgbaton.Tx { return b.begin(t) }, "a trigger")
		s.way.With(t, func(q pgbaton.Querier) {
			requireUseless(t, pgbaton.DeleteVersion(ctx, q, b.table, keyOne, 1, nil), "a trigger")
		})
	})
}

// requireNotWritten checks that the writes say that something keeps row 1, and that Mutate does not go on trying.
func (b *bundle) requireNotWritten(ctx context.Context, t *testing.T, begin func() pgbaton.Tx, text string) {
	t.Helper()
	tx := begin()
	_, err := pgbaton.UpdateVersion(ctx, tx, b.table, keyOne, 1, pgbaton.Values{"balance": 7}, nil)
	requireUseless(t, err, text)
	requireUseless(t, pgbaton.DeleteVersion(ctx, tx, b.table, keyOne, 1, nil), text)
	calls := 0
	_, err = pgbaton.Mutate(ctx, tx, b.table, keyOne, nil, func(row *account) error { calls++; row.Balance++; return nil })
	requireUseless(t, err, text)
	require.Equal(t, 1, calls)
	require.NoError(t, tx.Rollback(ctx))
	require.Equal(t, 100, read[int](ctx, t, b, "SELECT balance FROM "+b.name()+" WHERE id = 1"))
}

// lockedTable is a table that is locked as a whole.
func (s *suite) lockedTable(t *testing.T) {
	t.Helper()
	t.Run("LockedTable/IsNotWaitedForLongerThanAsked", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx := b.begin(t)
		ddl := b.hold(ctx, t, "LOCK TABLE "+b.name()+" IN ACCESS EXCLUSIVE MODE")
		for _, wait := range []time.Duration{pgbaton.NoWait, 80 * time.Millisecond} {
			rows := &pgbaton.RowOpts{Wait: wait}
			_, err := pgbaton.LockRow[account](ctx, tx, b.table, keyOne, rows)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			_, err = pgbaton.LockRows[account](ctx, tx, b.table, []pgbaton.Values{keyOne, {"id": 2}}, rows)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			_, err = pgbaton.ClaimRows[account](ctx, tx, b.table, 2, &pgbaton.ClaimOpts{Wait: wait})
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			require.Equal(t, "0 0", queryString(ctx, t, tx, sqlSettings))
		}
		require.NoError(t, ddl.Rollback(ctx))
		for _, wait := range waits { // and when it is free
			got, err := pgbaton.ClaimRows[int](ctx, tx, b.table, 2, &pgbaton.ClaimOpts{Wait: wait, OrderBy: "id", Column: "id"})
			require.NoError(t, err)
			require.Equal(t, []int{1, 2}, got)
		}
		require.Equal(t, "0 0", queryString(ctx, t, tx, sqlSettings))
		require.NoError(t, tx.Commit(ctx))
	})
	t.Run("LockedTable/ClaimEndsWithContext", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx := b.begin(t)
		// lib/pq cancels once: if that comes before the statement, only the server can end the wait.
		exec(ctx, t, tx, "SET LOCAL lock_timeout = '10s'")
		b.hold(ctx, t, "LOCK TABLE "+b.name()+" IN ACCESS EXCLUSIVE MODE")
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err := pgbaton.ClaimRows[account](short, tx, b.table, 2, nil)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
	t.Run("LockedTable/StatementTimeoutEndsTheWait", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, "LOCK TABLE "+b.name()+" IN ACCESS EXCLUSIVE MODE")
		for _, call := range []func(tx pgbaton.Tx) error{
			func(tx pgbaton.Tx) error {
				_, err := pgbaton.LockRow[account](ctx, tx, b.table, keyOne, nil)
				return err
			},
			func(tx pgbaton.Tx) error {
				_, err := pgbaton.ClaimRows[account](ctx, tx, b.table, 1, nil)
				return err
			},
		} {
			tx := b.begin(t)
			exec(ctx, t, tx, "SET LOCAL statement_timeout = '50ms'")
			require.ErrorIs(t, call(tx), pgbaton.ErrNotAcquired)
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("LongWait/IsNoLimit", func(t *testing.T) {
		ctx, b := s.setup(t)
		for _, wait := range []time.Duration{math.MaxInt64, 30 * 24 * time.Hour, math.MaxInt32 * time.Millisecond} {
			holder := b.hold(ctx, t, "SELECT FROM "+b.name()+" WHERE id = 1 FOR UPDATE")
			b.background(t, func() {
				b.awaitWaiter(ctx, t, holder)
				_ = holder.Rollback(ctx)
			})
			tx := b.begin(t)
			_, err := pgbaton.LockRow[account](ctx, tx, b.table, keyOne, &pgbaton.RowOpts{Wait: wait})
			require.NoError(t, err)
			_, err = pgbaton.LockRows[account](ctx, tx, b.table, []pgbaton.Values{keyOne, {"id": 2}}, &pgbaton.RowOpts{Wait: wait})
			require.NoError(t, err)
			_, err = pgbaton.ClaimRows[account](ctx, tx, b.table, 3, &pgbaton.ClaimOpts{Wait: wait})
			require.NoError(t, err)
			require.Equal(t, "0 0", queryString(ctx, t, tx, sqlSettings))
			require.NoError(t, tx.Rollback(ctx))
		}
	})
}

// foreign is a table on another server: here, the same one over postgres_fdw.
func (s *suite) foreign(t *testing.T) {
	t.Helper()
	t.Run("ForeignTable/RefusesWhatCannotBeKept", func(t *testing.T) {
		ctx, b := s.setup(t)
		far := b.foreignTable(ctx, t)
		tx := b.begin(t)
		got, err := pgbaton.LockRow[account](ctx, tx, far, keyOne, nil)
		require.NoError(t, err)
		require.Equal(t, "owner 1", got.Owner)
		rows, err := pgbaton.LockRows[int](ctx, tx, far, []pgbaton.Values{{"id": 3}, {"id": 2}}, &pgbaton.RowOpts{Column: "id"})
		require.NoError(t, err)
		require.Equal(t, []int{3, 2}, rows)

		other := b.begin(t)
		for _, id := range []int{1, 2, 3} {
			_, err = pgbaton.LockRow[account](ctx, other, b.table, pgbaton.Values{"id": id}, &pgbaton.RowOpts{Wait: pgbaton.NoWait})
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired, "it is locked where it lives")
		}
		_, err = pgbaton.LockRow[account](ctx, other, far, keyOne, &pgbaton.RowOpts{Wait: 100 * time.Millisecond})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		for range 2 {
			_, err = pgbaton.LockRow[account](ctx, other, far, keyOne, &pgbaton.RowOpts{Wait: pgbaton.NoWait})
			requireUseless(t, err, `foreign table `)
			require.ErrorContains(t, err, `.far: NoWait cannot be kept`)
			_, err = pgbaton.ClaimRows[account](ctx, other, far, 1, nil)
			require.ErrorContains(t, err, `cannot be kept on another server`)
		}
		require.NoError(t, tx.Rollback(ctx))
		// On a slow machine postgres_fdw may not get its own query cancelled when a wait ends, and then refuses the far table until
		// the transaction's end.
		require.NoError(t, other.Rollback(ctx))
		last := b.begin(t)
		version, err := pgbaton.UpdateVersion(ctx, last, far, keyOne, 1, pgbaton.Values{"balance": 7}, nil)
		require.NoError(t, err)
		require.Equal(t, int64(2), version)
	})
}

// foreignTable makes a foreign table of the bundle's table.
func (b *bundle) foreignTable(ctx context.Context, t *testing.T) pgx.Identifier {
	t.Helper()
	config := b.pool.Config().ConnConfig
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	port := read[string](ctx, t, b, "SELECT current_setting('port')")
	far := pgx.Identifier{b.table[0], "far"}
	b.exec(ctx, t, "CREATE EXTENSION postgres_fdw")
	b.exec(ctx, t, "CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'localhost', port "+quote(port)+
		", dbname "+quote(config.Database)+")")
	b.exec(ctx, t, "CREATE USER MAPPING FOR CURRENT_USER SERVER here OPTIONS (user "+quote(config.User)+
		", password "+quote(config.Password)+")")
	b.exec(ctx, t, "CREATE FOREIGN TABLE "+far.Sanitize()+` (
		id bigint NOT NULL, owner text NOT NULL, note text, balance integer NOT NULL, data bytea NOT NULL,
		opened timestamptz NOT NULL, version integer NOT NULL) SERVER here OPTIONS (schema_name `+quote(b.table[0])+
		", table_name "+quote(b.table[1])+")")
	return far
}
