package rowtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

const sqlSettings = `SELECT current_setting('lock_timeout') || ' ' || current_setting('statement_timeout')`

func (s *suite) lockRow(t *testing.T) {
	t.Helper()
	t.Run("LockRow/ReturnsRow", func(t *testing.T) {
		ctx, b := s.setup(t)
		got, err := pgbaton.LockRow[account](ctx, b.begin(t), b.table, pgbaton.Values{"id": 3}, nil)
		require.NoError(t, err)
		require.Equal(t, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), got.Opened.UTC())
		got.Opened = time.Time{}
		require.Equal(t, account{ID: 3, Owner: "owner 3", Balance: 100, Data: []byte{1, 2}, Version: 1}, got)
	})
	t.Run("LockRow/ReturnsScalar", func(t *testing.T) {
		ctx, b := s.setup(t)
		opts := &pgbaton.RowOpts{Column: "opened"}
		got, err := pgbaton.LockRow[time.Time](ctx, b.begin(t), b.table, pgbaton.Values{"id": 3}, opts)
		require.NoError(t, err)
		require.Equal(t, 2026, got.UTC().Year())
		note, err := pgbaton.LockRow[*string](ctx, b.begin(t), b.table, pgbaton.Values{"id": 4}, &pgbaton.RowOpts{Column: "note"})
		require.NoError(t, err)
		require.Nil(t, note)
	})
	t.Run("LockRow/LocksAlone", func(t *testing.T) {
		ctx, b := s.setup(t)
		_, err := pgbaton.LockRow[struct{}](ctx, b.begin(t), b.table, pgbaton.Values{"id": 3}, nil)
		require.NoError(t, err)
		noWait := &pgbaton.RowOpts{Wait: pgbaton.NoWait}
		_, err = pgbaton.LockRow[struct{}](ctx, b.begin(t), b.table, pgbaton.Values{"id": 3}, noWait)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	})
	t.Run("LockRow/RefusesMissingRow", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx := b.begin(t)
		for _, wait := range []time.Duration{0, pgbaton.NoWait, 30 * time.Second} {
			got, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 99}, &pgbaton.RowOpts{Wait: wait})
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
			require.Zero(t, got.ID)
		}
	})
	t.Run("LockRow/TakesCompositeKeyAndOddColumns", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := pgx.Identifier{b.table[0], "Order"}
		b.exec(ctx, t, "CREATE TABLE "+table.Sanitize()+` ("Year" integer, "a""b;--" text, uid uuid, "select" numeric, PRIMARY KEY ("Year", "a""b;--", uid))`)
		b.exec(ctx, t, "INSERT INTO "+table.Sanitize()+` VALUES (2026, ''' OR true --', '00000000-0000-0000-0000-000000000007', 1.5), (2026, 'x', gen_random_uuid(), 2)`)
		type order struct {
			Year  int    `db:"Year"`
			Odd   string `db:"a\"b;--"`
			Price string `db:"select"`
		}
		key := pgbaton.Values{"Year": 2026, `a"b;--`: "' OR true --", "uid": "00000000-0000-0000-0000-000000000007"}
		got, err := pgbaton.LockRow[order](ctx, b.begin(t), table, key, nil)
		require.NoError(t, err)
		require.Equal(t, order{2026, "' OR true --", "1.5"}, got)
	})
	t.Run("LockRow/RefusesKeyOfTwoRows", func(t *testing.T) {
		ctx, b := s.setup(t)
		_, err := pgbaton.LockRow[account](ctx, b.begin(t), b.table, pgbaton.Values{"balance": 100}, nil)
		require.ErrorContains(t, err, "10 rows have the key")
	})
	t.Run("LockRow/TakesEachStrength", s.strengths)
}

func (s *suite) strengths(t *testing.T) {
	ctx, b := s.setup(t)
	all := []string{"FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE", "FOR KEY SHARE"}
	// As in PostgreSQL's table of conflicting row-level locks.
	compatible := map[[2]string]bool{
		{"FOR NO KEY UPDATE", "FOR KEY SHARE"}: true,
		{"FOR SHARE", "FOR SHARE"}:             true,
		{"FOR SHARE", "FOR KEY SHARE"}:         true,
		{"FOR KEY SHARE", "FOR KEY SHARE"}:     true,
	}
	for i, held := range all {
		for j, wanted := range all {
			holder, other := b.begin(t), b.begin(t)
			key := pgbaton.Values{"id": 1}
			_, err := pgbaton.LockRow[account](ctx, holder, b.table, key, &pgbaton.RowOpts{Strength: held})
			require.NoError(t, err)
			opts := &pgbaton.RowOpts{Strength: wanted, Wait: pgbaton.NoWait}
			_, err = pgbaton.LockRow[account](ctx, other, b.table, key, opts)
			if compatible[[2]string{held, wanted}] || compatible[[2]string{wanted, held}] {
				require.NoError(t, err, "%d %d", i, j)
			} else {
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired, "%d %d", i, j)
			}
			require.NoError(t, holder.Rollback(ctx))
			require.NoError(t, other.Rollback(ctx))
		}
	}
}

func (s *suite) lockRowWait(t *testing.T) {
	t.Helper()
	key := pgbaton.Values{"id": 1}

	t.Run("LockRowWait/LeavesTransactionUsable", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, "UPDATE "+b.name()+" SET balance = 0 WHERE id = 1")
		tx := b.begin(t)
		exec(ctx, t, tx, "SET LOCAL lock_timeout = '7s'")
		exec(ctx, t, tx, "SAVEPOINT outside")
		exec(ctx, t, tx, "UPDATE "+b.name()+" SET balance = 1 WHERE id = 2")
		exec(ctx, t, tx, "SET LOCAL statement_timeout = '9s'")
		for _, wait := range []time.Duration{pgbaton.NoWait, 80 * time.Millisecond} {
			start := time.Now()
			_, err := pgbaton.LockRow[account](ctx, tx, b.table, key, &pgbaton.RowOpts{Wait: wait})
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			require.GreaterOrEqual(t, time.Since(start), wait)
			require.Equal(t, "7s 9s", queryString(ctx, t, tx, sqlSettings))
		}
		exec(ctx, t, tx, "ROLLBACK TO SAVEPOINT outside")
		require.Equal(t, "7s 0", queryString(ctx, t, tx, sqlSettings))
		require.NoError(t, tx.Commit(ctx))
		require.Equal(t, 100, read[int](ctx, t, b, "SELECT balance FROM "+b.name()+" WHERE id = 2"))
	})
	t.Run("LockRowWait/LocksWhenFreed", func(t *testing.T) {
		ctx, b := s.setup(t)
		holder := b.hold(ctx, t, "UPDATE "+b.name()+" SET balance = 55 WHERE id = 1")
		tx := b.begin(t)
		exec(ctx, t, tx, "SET LOCAL statement_timeout = '59s'")
		exec(ctx, t, tx, "SAVEPOINT outside")
		b.background(t, func() {
			b.awaitWaiter(ctx, t, holder)
			_ = holder.Commit(ctx)
		})
		got, err := pgbaton.LockRow[account](ctx, tx, b.table, key, &pgbaton.RowOpts{Wait: 30 * time.Second})
		require.NoError(t, err)
		require.Equal(t, 55, got.Balance)
		require.Equal(t, "0 59s", queryString(ctx, t, tx, sqlSettings))
		exec(ctx, t, tx, "RELEASE SAVEPOINT outside")
		_, err = pgbaton.LockRow[account](ctx, b.begin(t), b.table, key, &pgbaton.RowOpts{Wait: pgbaton.NoWait})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	})
	t.Run("LockRowWait/SeesRowVanish", func(t *testing.T) {
		ctx, b := s.setup(t)
		holder := b.hold(ctx, t, "DELETE FROM "+b.name()+" WHERE id = 1")
		b.background(t, func() {
			b.awaitWaiter(ctx, t, holder)
			_ = holder.Commit(ctx)
		})
		_, err := pgbaton.LockRow[account](ctx, b.begin(t), b.table, key, &pgbaton.RowOpts{Wait: 30 * time.Second})
		require.ErrorIs(t, err, pgbaton.ErrNotFound)
	})
	t.Run("LockRowWait/KeepsStricterStatementTimeout", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, "UPDATE "+b.name()+" SET balance = 0 WHERE id = 1")
		tx := b.begin(t)
		_, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 2}, nil)
		require.NoError(t, err)
		exec(ctx, t, tx, "SET LOCAL statement_timeout = '3s'")
		_, err = pgbaton.LockRow[account](ctx, tx, b.table, key, &pgbaton.RowOpts{Wait: 30 * time.Second})
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.Equal(t, "0 3s", queryString(ctx, t, tx, sqlSettings))
	})
	t.Run("LockRowWait/EndsWithContext", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, "UPDATE "+b.name()+" SET balance = 0 WHERE id = 1")
		tx := b.begin(t)
		// lib/pq cancels once: if that comes before the statement, only the server can end the wait.
		exec(ctx, t, tx, "SET LOCAL lock_timeout = '10s'")
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := pgbaton.LockRow[account](short, tx, b.table, key, nil)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func (s *suite) lockRows(t *testing.T) {
	t.Helper()
	keys := func(ids ...int) []pgbaton.Values {
		var keys []pgbaton.Values
		for _, id := range ids {
			keys = append(keys, pgbaton.Values{"id": id})
		}
		return keys
	}
	ids := &pgbaton.RowOpts{Column: "id"}

	t.Run("LockRows/ReturnsInOrderOfKeysGiven", func(t *testing.T) {
		ctx, b := s.setup(t)
		for _, wait := range []time.Duration{0, pgbaton.NoWait, 30 * time.Second} {
			tx := b.begin(t)
			opts := &pgbaton.RowOpts{Column: "id", Wait: wait}
			got, err := pgbaton.LockRows[int](ctx, tx, b.table, keys(7, 2, 2, 10, 2), opts)
			require.NoError(t, err)
			require.Equal(t, []int{7, 2, 2, 10, 2}, got)
			require.NoError(t, tx.Rollback(ctx))
		}
		one, err := pgbaton.LockRows[int](ctx, b.begin(t), b.table, keys(5), ids)
		require.NoError(t, err)
		require.Equal(t, []int{5}, one)
	})
	t.Run("LockRows/NamesMissingKey", func(t *testing.T) {
		ctx, b := s.setup(t)
		for _, wait := range []time.Duration{0, pgbaton.NoWait, 30 * time.Second} {
			tx := b.begin(t)
			got, err := pgbaton.LockRows[account](ctx, tx, b.table, keys(1, 2, 99, 3), &pgbaton.RowOpts{Wait: wait})
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
			require.ErrorContains(t, err, "key 3 of 4")
			require.Nil(t, got)
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("LockRows/RefusesTakenRow", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, "SELECT FROM "+b.name()+" WHERE id = 2 FOR UPDATE")
		b.hold(ctx, t, "SELECT FROM "+b.name()+" WHERE id = 8 FOR UPDATE")
		for _, wait := range []time.Duration{pgbaton.NoWait, 50 * time.Millisecond} {
			tx := b.begin(t)
			got, err := pgbaton.LockRows[account](ctx, tx, b.table, keys(8, 1, 2), &pgbaton.RowOpts{Wait: wait})
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			require.Nil(t, got)
			exec(ctx, t, tx, "SELECT 1")
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("LockRows/BoundsWholeWait", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.hold(ctx, t, "SELECT FROM "+b.name()+" WHERE id = 2 FOR UPDATE")
		took := time.Hour
		for attempt := 0; took > 4500*time.Millisecond; attempt++ { // lock_timeout alone would wait 4.8 s
			require.Less(t, attempt, 8, "%v", took) // a busy machine may be late by itself, but not each time
			first := b.hold(ctx, t, "SELECT FROM "+b.name()+" WHERE id = 1 FOR UPDATE")
			b.background(t, func() {
				time.Sleep(1800 * time.Millisecond) // of the three seconds that the whole may take
				_ = first.Rollback(ctx)
			})
			tx := b.begin(t)
			start := time.Now()
			_, err := pgbaton.LockRows[account](ctx, tx, b.table, keys(1, 2), &pgbaton.RowOpts{Wait: 3 * time.Second})
			took = time.Since(start)
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			exec(ctx, t, tx, "SELECT 1")
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("LockRows/RefusesMixedKeys", func(t *testing.T) {
		ctx, b := s.setup(t)
		mixed := []pgbaton.Values{{"id": 1}, {"owner": "owner 2"}}
		_, err := pgbaton.LockRows[account](ctx, b.begin(t), b.table, mixed, nil)
		require.ErrorContains(t, err, `lacks column "id"`)
		_, err = pgbaton.LockRows[account](ctx, b.begin(t), b.table, nil, nil)
		require.ErrorContains(t, err, "no keys")
	})
}

func (s *suite) claimRows(t *testing.T) {
	t.Helper()
	opts := &pgbaton.ClaimOpts{
		Where:   "balance = $1 AND opened <= now() -- free ones",
		Args:    []any{100},
		OrderBy: "id DESC",
		Column:  "id",
	}
	t.Run("ClaimRows/TakesDifferentRows", func(t *testing.T) {
		ctx, b := s.setup(t)
		first, err := pgbaton.ClaimRows[int](ctx, b.begin(t), b.table, 3, opts)
		require.NoError(t, err)
		require.Equal(t, []int{10, 9, 8}, first)
		second, err := pgbaton.ClaimRows[int](ctx, b.begin(t), b.table, 9, opts)
		require.NoError(t, err)
		require.Equal(t, []int{7, 6, 5, 4, 3, 2, 1}, second)
		none, err := pgbaton.ClaimRows[int](ctx, b.begin(t), b.table, 1, opts)
		require.NoError(t, err)
		require.Empty(t, none)
	})
	t.Run("ClaimRows/TakesAnyRow", func(t *testing.T) {
		ctx, b := s.setup(t)
		got, err := pgbaton.ClaimRows[account](ctx, b.begin(t), b.table, 20, nil)
		require.NoError(t, err)
		require.Len(t, got, 10)
	})
	t.Run("ClaimRows/SkipsRowThatNoLongerMatches", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "UPDATE "+b.name()+" SET balance = 5 WHERE id = 10")
		got, err := pgbaton.ClaimRows[int](ctx, b.begin(t), b.table, 1, opts)
		require.NoError(t, err)
		require.Equal(t, []int{9}, got)
	})
	t.Run("ClaimRows/RefusesBadOptions", func(t *testing.T) {
		ctx, b := s.setup(t)
		_, err := pgbaton.ClaimRows[account](ctx, b.begin(t), b.table, 0, nil)
		require.ErrorContains(t, err, "n is 0")
		_, err = pgbaton.ClaimRows[account](ctx, b.begin(t), b.table, 1, &pgbaton.ClaimOpts{Args: []any{1}})
		require.ErrorContains(t, err, "argument 1 is given, and $1 is not used")
		_, err = pgbaton.ClaimRows[account](ctx, b.begin(t), b.table, 1,
			&pgbaton.ClaimOpts{Where: "id = $1", Args: []any{pgx.NamedArgs{"x": 1}}})
		require.ErrorContains(t, err, "is an option of a query")
	})
}
