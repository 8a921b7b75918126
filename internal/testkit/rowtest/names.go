package rowtest

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// names are those of tables, columns and placeholders.
func (s *suite) names(t *testing.T) {
	t.Helper()
	t.Run("Names/AreNotCut", func(t *testing.T) {
		ctx, b := s.setup(t)
		cut := pgx.Identifier{b.table[0], strings.Repeat("x", 63)}
		b.exec(ctx, t, "CREATE TABLE "+cut.Sanitize()+" (id int PRIMARY KEY, balance int, version int NOT NULL DEFAULT 1)")
		b.exec(ctx, t, "INSERT INTO "+cut.Sanitize()+" VALUES (1, 5)")
		long := pgx.Identifier{b.table[0], strings.Repeat("x", 64)}
		const text = "has 64 bytes"
		s.way.With(t, func(q pgbaton.Querier) {
			_, err := pgbaton.UpdateVersion(ctx, q, long, keyOne, 1, pgbaton.Values{"balance": 7}, nil)
			require.ErrorContains(t, err, text)
			_, err = pgbaton.UpdateVersion(ctx, q, cut, keyOne, 1, pgbaton.Values{strings.Repeat("b", 64): 7}, nil)
			require.ErrorContains(t, err, text)
			require.ErrorContains(t, pgbaton.DeleteVersion(ctx, q, cut, pgbaton.Values{strings.Repeat("\u00e4", 32): 1}, 1, nil), text)
		})
		tx := b.begin(t)
		_, err := pgbaton.LockRow[int](ctx, tx, long, keyOne, &pgbaton.RowOpts{Column: "balance"})
		require.ErrorContains(t, err, text)
		_, err = pgbaton.ClaimRows[int](ctx, tx, long, 1, &pgbaton.ClaimOpts{Column: "balance"})
		require.ErrorContains(t, err, text)
		got, err := pgbaton.LockRow[int](ctx, tx, cut, keyOne, &pgbaton.RowOpts{Column: "balance"})
		require.NoError(t, err)
		require.Equal(t, 5, got)
	})
	t.Run("Names/FindTheColumnsThatPgxFinds", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := pgx.Identifier{b.table[0], "spelled"}
		b.exec(ctx, t, "CREATE TABLE "+table.Sanitize()+` (id int PRIMARY KEY, user_ids text, oauthtoken text, "I_Pv4" text,
			address_2 text, "Tag" text, createdat text, version int NOT NULL DEFAULT 1)`)
		b.exec(ctx, t, "INSERT INTO "+table.Sanitize()+" VALUES (1, 'a', 'b', 'c', 'd', 'e', 'f')")
		type spelled struct {
			UserIDs    string
			OAuthToken string
			IPv4       string
			Address2   string
			Tagged     string `db:"tag"`
			CreatedAt  string
		}
		want := spelled{"a", "b", "c", "d", "e", "f"}
		rows, err := b.pool.Query(ctx, "SELECT user_ids, oauthtoken, \"I_Pv4\", address_2, \"Tag\", createdat FROM "+table.Sanitize())
		require.NoError(t, err)
		byPgx, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[spelled])
		require.NoError(t, err)
		require.Equal(t, want, byPgx)

		tx := b.begin(t)
		got, err := pgbaton.LockRow[spelled](ctx, tx, table, keyOne, nil)
		require.NoError(t, err)
		require.Equal(t, want, got)
		claimed, err := pgbaton.ClaimRows[spelled](ctx, tx, table, 1, nil)
		require.NoError(t, err)
		require.Equal(t, []spelled{want}, claimed)
		require.NoError(t, tx.Commit(ctx))
		s.way.With(t, func(q pgbaton.Querier) {
			got, err := pgbaton.Mutate(ctx, q, table, keyOne, nil, func(r *spelled) error { r.IPv4 += "!"; return nil })
			require.NoError(t, err)
			require.Equal(t, "c!", got.IPv4)
		})
	})
	t.Run("Names/AreLookedUpAgainAfterMigration", func(t *testing.T) {
		ctx, b := s.setup(t)
		type row struct{ UserIDs, Owner string }
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ADD user_ids text NOT NULL DEFAULT 'x'")
		mutate := func(q pgbaton.Querier) error {
			_, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(r *row) error { r.UserIDs += "+"; return nil })
			return err
		}
		require.NoError(t, mutate(s.pool))
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" RENAME user_ids TO userids")
		if err := mutate(s.pool); err != nil { // unless thousands of other tables were looked up since
			require.ErrorContains(t, err, `column "user_ids" does not exist`)
		}
		s.way.With(t, func(q pgbaton.Querier) { require.NoError(t, mutate(q)) })
	})
	t.Run("StalePlan/IsMadeAgain", s.stalePlan)
	t.Run("ClaimRows/CountsPlaceholders", func(t *testing.T) {
		ctx, b := s.setup(t)
		tx := b.begin(t)
		for text, opts := range map[string]*pgbaton.ClaimOpts{
			"$2 is used, and there are 1 arguments":  {Where: "balance = $1 AND id > $2", Args: []any{100}},
			"$1 is used, and there are 0 arguments":  {Where: "id > $1"},
			"argument 2 is given, and $2 is not":     {Where: "balance = $1", Args: []any{100, 7}},
			"$3 is used, and there are 2 arguments":  {Where: "balance = $1 AND id > $2", OrderBy: "id - $3", Args: []any{100, 2}},
			"ClaimOpts.Wait is -2ns: give NoWait":    {Wait: -2},
			"argument 1 is given, and $1 is not use": {Where: "owner = '$1' -- $1", Args: []any{100}},
		} {
			_, err := pgbaton.ClaimRows[account](ctx, tx, b.table, 3, opts)
			require.ErrorContains(t, err, text)
		}
		ids, err := pgbaton.ClaimRows[int](ctx, tx, b.table, 2, &pgbaton.ClaimOpts{
			Where: "balance = $1 AND id > $2", OrderBy: "abs(id - $3)", Args: []any{100, 2, 7}, Column: "id",
		})
		require.NoError(t, err)
		require.Equal(t, 7, ids[0])
		require.Len(t, ids, 2)
	})
	t.Run("Mutate/SeesNaNAndNegativeZero", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ADD f double precision NOT NULL DEFAULT 'NaN', ADD g double precision NOT NULL DEFAULT 0")
		type row struct{ F, G float64 }
		s.way.With(t, func(q pgbaton.Querier) {
			_, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(*row) error { return nil })
			require.NoError(t, err)
			_, err = pgbaton.Mutate(ctx, q, b.table, pgbaton.Values{"id": 2}, nil, func(r *row) error { r.G = math.Copysign(0, -1); return nil })
			require.NoError(t, err)
		})
		require.Equal(t, 1, read[int](ctx, t, b, "SELECT version FROM "+b.name()+" WHERE id = 1"), "NaN is no change")
		require.Equal(t, "-0 2", read[string](ctx, t, b, "SELECT g || ' ' || version FROM "+b.name()+" WHERE id = 2"))
	})
	t.Run("Mutate/SaysOnceWhatDoesNotFit", func(t *testing.T) {
		ctx, b := s.setup(t)
		type row struct{ Owner int }
		s.way.With(t, func(q pgbaton.Querier) {
			if _, inTx := q.(pgbaton.Tx); inTx {
				return
			}
			_, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(*row) error { return nil })
			require.ErrorContains(t, err, "owner")
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, 1, strings.Count(err.Error(), "rowtest.row"))
		})
	})
}

// stalePlan changes the type of a column under statements that are prepared.
func (s *suite) stalePlan(t *testing.T) {
	ctx, b := s.setup(t)
	type row struct{ Owner string }
	calls := func(q pgbaton.Querier, version int64) int64 {
		version, err := pgbaton.UpdateVersion(ctx, q, b.table, keyOne, version, pgbaton.Values{"balance": 7}, nil)
		require.NoError(t, err)
		_, err = pgbaton.Mutate(ctx, q, b.table, pgbaton.Values{"id": 2}, nil, func(r *row) error { r.Owner += "+"; return nil })
		require.NoError(t, err)
		return version
	}
	alter := func() {
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ALTER version TYPE bigint, ALTER owner TYPE varchar(100)")
	}
	migrated := false
	s.way.With(t, func(q pgbaton.Querier) {
		if _, inTx := q.(pgbaton.Tx); inTx {
			return // it would lock the table that is to be altered
		}
		version := calls(q, 1)
		alter()
		migrated = true
		require.Equal(t, int64(3), calls(q, version))
	})
	lock := func(tx pgbaton.Tx) error {
		_, err := pgbaton.LockRow[account](ctx, tx, b.table, keyOne, nil)
		return err
	}
	inTx := func() error {
		return s.way.InTx(ctx, nil, func(_ context.Context, tx pgbaton.Tx) error { return lock(tx) })
	}
	require.NoError(t, inTx())
	if !migrated {
		alter()
	} else {
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ALTER owner TYPE text")
	}
	for range 3 { // some connection of the pool has the old plan
		require.NoError(t, inTx())
	}
}
