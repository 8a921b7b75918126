package rowtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// waits are the ways in which a row lock may wait. The last is not over before the call on any machine.
var waits = []time.Duration{0, pgbaton.NoWait, 30 * time.Second}

// twins makes a table in which the id alone names two rows, of two tenants.
func (b *bundle) twins(ctx context.Context, t *testing.T) pgx.Identifier {
	t.Helper()
	table := pgx.Identifier{b.table[0], "twins"}
	b.exec(ctx, t, "CREATE TABLE "+table.Sanitize()+
		" (tenant text, id int, balance int NOT NULL, version bigint NOT NULL, PRIMARY KEY (id, tenant))")
	b.exec(ctx, t, "INSERT INTO "+table.Sanitize()+" VALUES ('a', 1, 10, 1), ('b', 1, 20, 1), ('a', 2, 30, 1), ('b', 2, 40, 7)")
	return table
}

type twin struct {
	Tenant  string
	ID      int
	Balance int
}

// requireUseless checks an error that another try would not help, so that it matches no sentinel.
func requireUseless(t *testing.T, err error, text string) {
	t.Helper()
	require.ErrorContains(t, err, text)
	for _, sentinel := range []error{pgbaton.ErrConflict, pgbaton.ErrNotFound, pgbaton.ErrNotAcquired} {
		require.NotErrorIs(t, err, sentinel)
	}
}

// severalRows gives keys that name two rows.
func (s *suite) severalRows(t *testing.T) {
	t.Helper()
	const several = "2 rows have the key"
	t.Run("SeveralRows/AreNotWritten", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.twins(ctx, t)
		s.way.With(t, func(q pgbaton.Querier) {
			for id := 1; id <= 2; id++ { // both have the version, or one
				key := pgbaton.Values{"id": id}
				_, err := pgbaton.UpdateVersion(ctx, q, table, key, 1, pgbaton.Values{"balance": 0}, nil)
				requireUseless(t, err, several)
				requireUseless(t, pgbaton.DeleteVersion(ctx, q, table, key, 1, nil), several)
				calls := 0
				_, err = pgbaton.Mutate(ctx, q, table, key, nil, func(row *twin) error { calls++; row.Balance++; return nil })
				requireUseless(t, err, several)
				require.Zero(t, calls)
			}
		})
		require.Equal(t, "10 20 30 40", read[string](ctx, t, b,
			"SELECT string_agg(balance::text, ' ' ORDER BY id, tenant) FROM "+table.Sanitize()+" WHERE version IN (1, 7)"))
	})
	t.Run("SeveralRows/AppearWhileMutateWorks", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.twins(ctx, t)
		b.exec(ctx, t, "DELETE FROM "+table.Sanitize()+" WHERE tenant = 'b'")
		s.way.With(t, func(q pgbaton.Querier) {
			_, err := pgbaton.Mutate(ctx, q, table, keyOne, nil, func(row *twin) error {
				row.Balance++
				b.exec(ctx, t, "INSERT INTO "+table.Sanitize()+" VALUES ('b', 1, 20, 1)")
				return nil
			})
			requireUseless(t, err, several)
		})
		require.Equal(t, 30, read[int](ctx, t, b, "SELECT sum(balance) FROM "+table.Sanitize()+" WHERE id = 1"))
	})
	t.Run("SeveralRows/AreNotLocked", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.twins(ctx, t)
		for _, wait := range waits {
			opts := &pgbaton.RowOpts{Wait: wait}
			tx := b.begin(t)
			_, err := pgbaton.LockRow[twin](ctx, tx, table, keyOne, opts)
			requireUseless(t, err, several)
			// Two rows and two keys, but not a row for each.
			_, err = pgbaton.LockRows[twin](ctx, tx, table, []pgbaton.Values{{"id": 1}, {"id": 99}}, opts)
			requireUseless(t, err, "key 1 of 2: "+several)
			require.NoError(t, tx.Rollback(ctx))
		}
	})
	t.Run("SeveralRows/OneOfThemTaken", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.twins(ctx, t)
		b.hold(ctx, t, "SELECT FROM "+table.Sanitize()+" WHERE id = 1 AND tenant = 'a' FOR UPDATE")
		opts := &pgbaton.RowOpts{Wait: pgbaton.NoWait}
		tx := b.begin(t)
		_, err := pgbaton.LockRow[twin](ctx, tx, table, keyOne, opts)
		requireUseless(t, err, several)
		_, err = pgbaton.LockRows[twin](ctx, tx, table, []pgbaton.Values{{"id": 1}, {"id": 2}}, opts)
		requireUseless(t, err, several)
	})
	t.Run("LockRows/FindsCompositeKeysOfEachType", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := pgx.Identifier{b.table[0], "typed"}
		b.exec(ctx, t, "CREATE DOMAIN "+pgx.Identifier{b.table[0], "d"}.Sanitize()+" AS varchar(20)")
		b.exec(ctx, t, "CREATE TABLE "+table.Sanitize()+" (u uuid, d "+pgx.Identifier{b.table[0], "d"}.Sanitize()+
			", n numeric, c char(5), t timestamptz, i smallint, PRIMARY KEY (u, d, n, c, t, i))")
		b.exec(ctx, t, "INSERT INTO "+table.Sanitize()+` SELECT '00000000-0000-0000-0000-000000000007', 'd', 1.50, 'c',
			'2026-01-02T03:04:05Z', i FROM generate_series(1, 5) i`)
		var keys []pgbaton.Values
		for _, i := range []int{4, 1, 5} {
			keys = append(keys, pgbaton.Values{
				"u": "00000000-0000-0000-0000-000000000007", "d": "d", "n": "1.5", "c": "c",
				"t": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "i": i,
			})
		}
		for _, wait := range []time.Duration{0, pgbaton.NoWait, time.Second} {
			got, err := pgbaton.LockRows[int](ctx, b.begin(t), table, keys, &pgbaton.RowOpts{Column: "i", Wait: wait})
			if wait == pgbaton.NoWait { // the first transaction has them
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				continue
			}
			if wait > 0 {
				require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, []int{4, 1, 5}, got)
		}
	})
	t.Run("LockRow/FollowsRowThatIsReplaced", func(t *testing.T) {
		ctx, b := s.setup(t)
		for _, wait := range []time.Duration{0, 30 * time.Second} {
			holder := b.hold(ctx, t, "DELETE FROM "+b.name()+" WHERE id = 1")
			_, err := holder.Exec(ctx, "INSERT INTO "+b.name()+" VALUES (1, 'new', NULL, 7, '', now(), 3)")
			require.NoError(t, err)
			b.background(t, func() {
				b.awaitWaiter(ctx, t, holder)
				_ = holder.Commit(ctx)
			})
			tx := b.begin(t)
			got, err := pgbaton.LockRow[account](ctx, tx, b.table, keyOne, &pgbaton.RowOpts{Wait: wait})
			require.NoError(t, err)
			require.Equal(t, "new", got.Owner)
			require.NoError(t, tx.Rollback(ctx))
		}
	})
}
