package rowtest

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

var keyOne = pgbaton.Values{"id": 1}

func (s *suite) updateVersion(t *testing.T) {
	t.Helper()
	t.Run("UpdateVersion/SetsColumns", func(t *testing.T) {
		ctx, b := s.setup(t)
		s.way.With(t, func(q pgbaton.Querier) {
			set := pgbaton.Values{"balance": 7, "owner": "x'; --", "note": nil}
			version, err := pgbaton.UpdateVersion(ctx, q, b.table, keyOne, 1, set, nil)
			require.NoError(t, err)
			require.Equal(t, int64(2), version)
		})
		require.Equal(t, "7 x'; -- 2", read[string](ctx, t, b, "SELECT balance || ' ' || owner || ' ' || version FROM "+b.name()+" WHERE id = 1"))
		require.Equal(t, 9, read[int](ctx, t, b, "SELECT count(*) FROM "+b.name()+" WHERE version = 1 AND balance = 100"))
	})
	t.Run("UpdateVersion/RefusesOldVersion", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "UPDATE "+b.name()+" SET version = 5")
		s.way.With(t, func(q pgbaton.Querier) {
			version, err := pgbaton.UpdateVersion(ctx, q, b.table, keyOne, 4, pgbaton.Values{"balance": 7}, nil)
			require.Zero(t, version)
			requireConflict(t, err, 4, 5)
		})
		require.Equal(t, 100, read[int](ctx, t, b, "SELECT balance FROM "+b.name()+" WHERE id = 1"))
	})
	t.Run("UpdateVersion/RefusesMissingRow", func(t *testing.T) {
		ctx, b := s.setup(t)
		s.way.With(t, func(q pgbaton.Querier) {
			_, err := pgbaton.UpdateVersion(ctx, q, b.table, pgbaton.Values{"id": 99}, 1, pgbaton.Values{"balance": 7}, nil)
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
			err = pgbaton.DeleteVersion(ctx, q, b.table, pgbaton.Values{"id": 99}, 1, nil)
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
		})
	})
	t.Run("UpdateVersion/WorksWithTrigger", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "ALTER TABLE "+b.name()+` RENAME version TO "Lock V"`)
		b.exec(ctx, t, "CREATE TRIGGER bump BEFORE UPDATE ON "+b.name()+" FOR EACH ROW EXECUTE FUNCTION pgbaton.bump_version('Lock V')")
		b.exec(ctx, t, "UPDATE "+b.name()+" SET balance = 1") // somebody without the library
		opts := &pgbaton.VersionOpts{Column: "Lock V"}
		s.way.With(t, func(q pgbaton.Querier) {
			_, err := pgbaton.UpdateVersion(ctx, q, b.table, keyOne, 1, pgbaton.Values{"balance": 7}, opts)
			requireConflict(t, err, 1, 2)
			version, err := pgbaton.UpdateVersion(ctx, q, b.table, keyOne, 2, pgbaton.Values{"balance": 7}, opts)
			require.NoError(t, err)
			require.Equal(t, int64(3), version)
			type row struct{ Balance int }
			_, err = pgbaton.Mutate(ctx, q, b.table, keyOne, opts, func(r *row) error { r.Balance++; return nil })
			require.NoError(t, err)
		})
		require.Equal(t, "8 4", read[string](ctx, t, b, `SELECT balance || ' ' || "Lock V" FROM `+b.name()+" WHERE id = 1"))
	})
	t.Run("DeleteVersion/Deletes", func(t *testing.T) {
		ctx, b := s.setup(t)
		s.way.With(t, func(q pgbaton.Querier) {
			requireConflict(t, pgbaton.DeleteVersion(ctx, q, b.table, keyOne, 2, nil), 2, 1)
			require.NoError(t, pgbaton.DeleteVersion(ctx, q, b.table, keyOne, 1, nil))
		})
		require.Equal(t, 9, read[int](ctx, t, b, "SELECT count(*) FROM "+b.name()))
	})
}

func requireConflict(t *testing.T, err error, expected, current int64) {
	t.Helper()
	require.ErrorIs(t, err, pgbaton.ErrConflict)
	var conflict *pgbaton.ConflictError
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, pgbaton.ConflictError{Expected: expected, Current: current}, *conflict)
}

// races are the updates whose own snapshot cannot show what happened: they waited for it.
func (s *suite) races(t *testing.T) {
	t.Helper()
	for name, test := range map[string]struct {
		other string
		check func(t *testing.T, err error)
	}{
		"TellsNewVersion": {"UPDATE %s SET version = version + 1 WHERE id = 1", func(t *testing.T, err error) {
			t.Helper()
			requireConflict(t, err, 1, 2)
		}},
		"TellsVanishedRow": {"DELETE FROM %s WHERE id = 1", func(t *testing.T, err error) {
			t.Helper()
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
			require.NotErrorIs(t, err, pgbaton.ErrConflict)
		}},
	} {
		t.Run("UpdateVersion/"+name, func(t *testing.T) {
			ctx, b := s.setup(t)
			holder := b.hold(ctx, t, sprintf(test.other, b.name()))
			s.way.With(t, func(q pgbaton.Querier) {
				result := make(chan error, 1)
				go func() {
					_, err := pgbaton.UpdateVersion(ctx, q, b.table, keyOne, 1, pgbaton.Values{"balance": 7}, nil)
					result <- err
				}()
				b.awaitWaiter(ctx, t, holder)
				require.NoError(t, holder.Commit(ctx))
				test.check(t, <-result)
			})
		})
	}
	t.Run("UpdateVersion/ConflictsAboveReadCommitted", func(t *testing.T) {
		ctx, b := s.setup(t)
		err := s.way.InTx(ctx, &pgbaton.TxOpts{Isolation: pgx.RepeatableRead, MaxAttempts: 1},
			func(ctx context.Context, tx pgbaton.Tx) error {
				exec(ctx, t, tx, "SELECT FROM "+b.name())
				b.exec(ctx, t, "UPDATE "+b.name()+" SET version = version + 1")
				_, err := pgbaton.UpdateVersion(ctx, tx, b.table, keyOne, 1, pgbaton.Values{"balance": 7}, nil)
				return err
			})
		require.ErrorIs(t, err, pgbaton.ErrConflict)
		var conflict *pgbaton.ConflictError
		require.NotErrorAs(t, err, &conflict)
	})
}

func (s *suite) mutate(t *testing.T) {
	t.Helper()
	t.Run("Mutate/WritesChangedColumnsOnly", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" DROP COLUMN owner, ADD owner text NOT NULL GENERATED ALWAYS AS ('generated') STORED")
		s.way.With(t, func(q pgbaton.Querier) {
			got, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(a *account) error {
				a.Balance += 11
				a.Data[0] = 9 // in place
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, 111, got.Balance)
			require.Equal(t, int64(2), got.Version)
			require.Equal(t, "generated", got.Owner)
		})
		require.Equal(t, []byte{9, 2}, read[[]byte](ctx, t, b, "SELECT data FROM "+b.name()+" WHERE id = 1"))
	})
	t.Run("Mutate/WritesNothingIfUnchanged", func(t *testing.T) {
		ctx, b := s.setup(t)
		s.way.With(t, func(q pgbaton.Querier) {
			got, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(*account) error { return nil })
			require.NoError(t, err)
			require.Equal(t, int64(1), got.Version)
		})
		require.Equal(t, 10, read[int](ctx, t, b, "SELECT count(*) FROM "+b.name()+" WHERE version = 1"))
	})
	t.Run("Mutate/TriesAgain", func(t *testing.T) {
		ctx, b := s.setup(t)
		calls := 0
		s.way.With(t, func(q pgbaton.Querier) {
			got, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(a *account) error {
				if calls++; calls < 4 {
					b.exec(ctx, t, "UPDATE "+b.name()+" SET balance = balance + 1, version = version + 1 WHERE id = 1")
				}
				a.Balance += 1000
				return nil
			})
			require.NoError(t, err)
			require.Equal(t, 1103, got.Balance)
		})
		require.Equal(t, 4, calls)
	})
	t.Run("Mutate/GivesUp", func(t *testing.T) {
		ctx, b := s.setup(t)
		calls := 0
		s.way.With(t, func(q pgbaton.Querier) {
			fn := func(a *account) error {
				calls++
				b.exec(ctx, t, "UPDATE "+b.name()+" SET version = version + 1 WHERE id = 1")
				a.Balance += 1000
				return nil
			}
			got, err := pgbaton.Mutate(ctx, q, b.table, keyOne, &pgbaton.VersionOpts{MaxAttempts: 3}, fn)
			require.ErrorIs(t, err, pgbaton.ErrConflict)
			require.ErrorContains(t, err, "3 attempts")
			require.Zero(t, got)
		})
		require.Equal(t, 3, calls)
	})
	t.Run("Mutate/PassesErrors", func(t *testing.T) {
		ctx, b := s.setup(t)
		s.way.With(t, func(q pgbaton.Querier) {
			own := errors.New("own")
			_, err := pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(*account) error { return own })
			require.Equal(t, own, err)
			_, err = pgbaton.Mutate(ctx, q, b.table, pgbaton.Values{"id": 99}, nil, func(*account) error { return own })
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
			_, err = pgbaton.Mutate(ctx, q, b.table, keyOne, nil, func(a *account) error { a.Version++; return nil })
			require.ErrorContains(t, err, "changed the version")
		})
	})
}
