package rowtest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

var sprintf = fmt.Sprintf

func (s *suite) inTx(t *testing.T) {
	t.Helper()
	t.Run("InTx/Commits", func(t *testing.T) {
		ctx, b := s.setup(t)
		opts := &pgbaton.TxOpts{Isolation: pgx.Serializable}
		require.NoError(t, s.way.InTx(ctx, opts, func(ctx context.Context, tx pgbaton.Tx) error {
			require.Equal(t, "serializable", queryString(ctx, t, tx, "SHOW transaction_isolation"))
			exec(ctx, t, tx, "DELETE FROM "+b.name()+" WHERE id = 1")
			return nil
		}))
		require.Equal(t, 9, read[int](ctx, t, b, "SELECT count(*) FROM "+b.name()))
		err := s.way.InTx(ctx, &pgbaton.TxOpts{ReadOnly: true}, func(ctx context.Context, tx pgbaton.Tx) error {
			_, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 2}, nil)
			return err
		})
		require.ErrorContains(t, err, "read-only transaction")
	})
	t.Run("InTx/RollsBack", func(t *testing.T) {
		ctx, b := s.setup(t)
		own := errors.New("own")
		remove := func(ctx context.Context, tx pgbaton.Tx) { exec(ctx, t, tx, "DELETE FROM "+b.name()) }
		require.Equal(t, own, s.way.InTx(ctx, nil, func(ctx context.Context, tx pgbaton.Tx) error {
			remove(ctx, tx)
			return own
		}))
		require.PanicsWithValue(t, "own", func() {
			_ = s.way.InTx(ctx, nil, func(ctx context.Context, tx pgbaton.Tx) error {
				remove(ctx, tx)
				panic("own")
			})
		})
		ending, cancel := context.WithCancel(ctx)
		require.ErrorIs(t, s.way.InTx(ending, nil, func(ctx context.Context, tx pgbaton.Tx) error {
			remove(ctx, tx)
			cancel()
			return nil
		}), context.Canceled)
		exec(ctx, t, s.pool, "SELECT FROM "+b.name()+" FOR UPDATE NOWAIT") // nobody holds anything
		require.Equal(t, 10, read[int](ctx, t, b, "SELECT count(*) FROM "+b.name()))
	})
	t.Run("InTx/TriesAgainAfterSerializationFailure", func(t *testing.T) {
		ctx, b := s.setup(t)
		s.requireRetries(ctx, t, b, &pgbaton.TxOpts{Isolation: pgx.RepeatableRead}, func(ctx context.Context, tx pgbaton.Tx) error {
			rows, err := tx.Query(ctx, "UPDATE "+b.name()+" SET balance = balance + 1000 WHERE id = 1")
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		})
	})
	t.Run("InTx/TriesAgainAfterConflict", func(t *testing.T) {
		ctx, b := s.setup(t)
		var version int64
		s.requireRetries(ctx, t, b, &pgbaton.TxOpts{RetryConflicts: true}, func(ctx context.Context, tx pgbaton.Tx) error {
			expected := version
			version = read[int64](ctx, t, b, "SELECT version FROM "+b.name()+" WHERE id = 1")
			_, err := pgbaton.UpdateVersion(ctx, tx, b.table, keyOne, expected, pgbaton.Values{"balance": 1101}, nil)
			return err
		})
	})
	t.Run("InTx/KeepsConflictUnlessAsked", func(t *testing.T) {
		ctx, b := s.setup(t)
		calls := 0
		require.ErrorIs(t, s.way.InTx(ctx, nil, func(ctx context.Context, tx pgbaton.Tx) error {
			calls++
			_, err := pgbaton.UpdateVersion(ctx, tx, b.table, keyOne, 7, pgbaton.Values{"balance": 1}, nil)
			return err
		}), pgbaton.ErrConflict)
		require.Equal(t, 1, calls)
	})
	t.Run("InTx/GivesUp", func(t *testing.T) {
		ctx, b := s.setup(t)
		calls := 0
		raise := func(ctx context.Context, tx pgbaton.Tx) error {
			calls++
			rows, err := tx.Query(ctx, `DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$`)
			if err != nil {
				return err
			}
			rows.Close()
			return rows.Err()
		}
		err := s.way.InTx(ctx, &pgbaton.TxOpts{MaxAttempts: 3}, raise)
		require.ErrorIs(t, err, pgbaton.ErrConflict)
		require.ErrorContains(t, err, "3 attempts")
		require.Equal(t, 3, calls)
		ends := []time.Duration{300 * time.Millisecond} // while it pauses, most likely, and in the middle of anything
		for after := time.Duration(0); after < 8*time.Millisecond; after += 80 * time.Microsecond {
			ends = append(ends, after)
		}
		for _, after := range ends {
			short, cancel := context.WithTimeout(ctx, after)
			err = s.way.InTx(short, &pgbaton.TxOpts{MaxAttempts: 1000}, raise)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, "after %v", after)
		}
		_ = b
	})
	t.Run("InTx/TellsConstraintAtCommit", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.exec(ctx, t, "ALTER TABLE "+b.name()+" ADD peer bigint REFERENCES "+b.name()+" DEFERRABLE INITIALLY DEFERRED")
		err := s.way.InTx(ctx, nil, func(ctx context.Context, tx pgbaton.Tx) error {
			exec(ctx, t, tx, "UPDATE "+b.name()+" SET peer = 99 WHERE id = 1")
			return nil
		})
		require.ErrorContains(t, err, "foreign key")
		require.NotErrorIs(t, err, pgbaton.ErrCommitUnknown)
	})
	t.Run("InTx/TellsUnknownCommit", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.atCommit(ctx, t, "PERFORM pg_terminate_backend(pg_backend_pid())")
		calls := 0
		err := s.way.InTx(ctx, nil, func(ctx context.Context, tx pgbaton.Tx) error {
			calls++
			exec(ctx, t, tx, "UPDATE "+b.name()+" SET balance = 1 WHERE id = 1")
			return nil
		})
		require.ErrorIs(t, err, pgbaton.ErrCommitUnknown)
		require.Equal(t, 1, calls)
	})
	t.Run("InTx/TellsContextThatEndsInCommit", func(t *testing.T) {
		ctx, b := s.setup(t)
		b.atCommit(ctx, t, "PERFORM pg_sleep(1)")
		short, cancel := context.WithCancel(ctx)
		defer cancel()
		err := s.way.InTx(short, nil, func(ctx context.Context, tx pgbaton.Tx) error {
			exec(ctx, t, tx, "UPDATE "+b.name()+" SET balance = 1 WHERE id = 1")
			time.AfterFunc(200*time.Millisecond, cancel)
			return nil
		})
		require.ErrorIs(t, err, context.Canceled)
		if !errors.Is(err, pgbaton.ErrCommitUnknown) { // then it is certain
			require.Equal(t, 100, read[int](ctx, t, b, "SELECT balance FROM "+b.name()+" WHERE id = 1"))
		}
	})
	t.Run("InTx/ExplainsDeadlock", s.deadlock)
}

// atCommit makes a transaction that updated the table run a statement while it commits.
func (b *bundle) atCommit(ctx context.Context, t *testing.T, statement string) {
	t.Helper()
	function := pgx.Identifier{b.table[0], "at_commit"}.Sanitize() + "()"
	b.exec(ctx, t, "CREATE FUNCTION "+function+" RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "+statement+"; RETURN NULL; END $$")
	b.exec(ctx, t, "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON "+b.name()+
		" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION "+function)
}

// requireRetries runs fn, before whose first call somebody else changes the row behind the transaction's back.
func (s *suite) requireRetries(
	ctx context.Context, t *testing.T, b *bundle, opts *pgbaton.TxOpts, fn func(ctx context.Context, tx pgbaton.Tx) error,
) {
	t.Helper()
	calls := 0
	require.NoError(t, s.way.InTx(ctx, opts, func(ctx context.Context, tx pgbaton.Tx) error {
		exec(ctx, t, tx, "SELECT FROM "+b.name())
		if calls++; calls == 1 {
			b.exec(ctx, t, "UPDATE "+b.name()+" SET balance = balance + 1, version = version + 1 WHERE id = 1")
		}
		return fn(ctx, tx)
	}))
	require.Equal(t, 2, calls)
	require.Equal(t, 1101, read[int](ctx, t, b, "SELECT balance FROM "+b.name()+" WHERE id = 1"))
}

// deadlock lets two transactions lock two rows crosswise. With one attempt the victim hears who did what;
// with more, both come through.
func (s *suite) deadlock(t *testing.T) {
	ctx, b := s.setup(t)
	require.NoError(t, s.crosswise(ctx, b, 10))
	ran := regexp.MustCompile(`process \d+ ran: SELECT "id", .* FOR UPDATE`)
	for attempts := 0; ; attempts++ {
		err := s.crosswise(ctx, b, 1)
		require.ErrorIs(t, err, pgbaton.ErrDeadlock)
		require.Regexp(t, `(?s)Process \d+ waits for .*Process \d+ waits for `, err.Error())
		if ran.MatchString(err.Error()) {
			return
		}
		require.Less(t, attempts, 10, err.Error()) // the statements are looked for during a second, which may be over
	}
}

// crosswise locks two rows in two transactions, in either order, each of which makes so many attempts.
func (s *suite) crosswise(ctx context.Context, b *bundle, attempts int) error {
	var (
		both, done sync.WaitGroup
		errs       [2]error
	)
	both.Add(2)
	for i := range 2 {
		first := true
		done.Go(func() {
			opts := &pgbaton.TxOpts{MaxAttempts: attempts}
			errs[i] = s.way.InTx(ctx, opts, func(ctx context.Context, tx pgbaton.Tx) error {
				if _, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 1 + i}, nil); err != nil {
					return err
				}
				if first {
					first = false
					both.Done()
					both.Wait()
				}
				_, err := pgbaton.LockRow[account](ctx, tx, b.table, pgbaton.Values{"id": 2 - i}, nil)
				return err
			})
		})
	}
	done.Wait()
	return errors.Join(errs[:]...)
}

func (s *suite) badInput(t *testing.T) {
	t.Helper()
	t.Run("BadInput/NamesWhatTheServerDoesNotKnow", func(t *testing.T) {
		ctx, b := s.setup(t)
		nope := pgx.Identifier{b.table[0], `no"pe`}
		_, err := pgbaton.LockRow[account](ctx, b.begin(t), nope, keyOne, nil)
		require.ErrorContains(t, err, `at `+nope.Sanitize())
		require.ErrorContains(t, err, "does not exist")
		type row struct {
			Nope int `db:"no\"pe"`
		}
		_, err = pgbaton.LockRow[row](ctx, b.begin(t), b.table, keyOne, nil)
		require.ErrorContains(t, err, `at "no""pe"`)
	})
	t.Run("BadInput/NamesFieldThatDoesNotFit", func(t *testing.T) {
		ctx, b := s.setup(t)
		type row struct{ Owner int }
		_, err := pgbaton.LockRow[row](ctx, b.begin(t), b.table, keyOne, nil)
		require.ErrorContains(t, err, "owner")
		require.ErrorContains(t, err, "rowtest.row")
	})
	t.Run("BadInput/IsRefusedUnsent", func(t *testing.T) {
		ctx, b := s.setup(t)
		var unused pgbaton.Tx // nothing may be sent
		set := pgbaton.Values{"balance": 1}
		for text, call := range map[string]func() error{
			"key has no columns": func() error {
				_, err := pgbaton.LockRow[account](ctx, unused, b.table, nil, nil)
				return err
			},
			"is NULL": func() error {
				_, err := pgbaton.LockRow[account](ctx, unused, b.table, pgbaton.Values{"id": (*int)(nil)}, nil)
				return err
			},
			"has 0 parts": func() error {
				_, err := pgbaton.LockRow[account](ctx, unused, nil, keyOne, nil)
				return err
			},
			"is not UTF-8 without NUL": func() error {
				_, err := pgbaton.LockRow[account](ctx, unused, pgx.Identifier{"a\x00b"}, keyOne, nil)
				return err
			},
			"say which column it takes": func() error {
				_, err := pgbaton.LockRow[int](ctx, unused, b.table, keyOne, nil)
				return err
			},
			"nothing to set": func() error {
				_, err := pgbaton.UpdateVersion(ctx, unused, b.table, keyOne, 1, nil, nil)
				return err
			},
			"has the version column": func() error {
				_, err := pgbaton.UpdateVersion(ctx, unused, b.table, keyOne, 1, pgbaton.Values{"version": 2}, nil)
				return err
			},
			"is an option of a query": func() error {
				_, err := pgbaton.UpdateVersion(ctx, unused, b.table, pgbaton.Values{"id": pgx.NamedArgs{}}, 1, set, nil)
				return err
			},
			"VersionOpts.Column": func() error {
				return pgbaton.DeleteVersion(ctx, unused, b.table, keyOne, 1, &pgbaton.VersionOpts{Column: "\xff"})
			},
			"VersionOpts.MaxAttempts is -1": func() error {
				return pgbaton.DeleteVersion(ctx, unused, b.table, keyOne, 1, &pgbaton.VersionOpts{MaxAttempts: -1})
			},
			"RowOpts.Wait is -2s": func() error {
				_, err := pgbaton.LockRow[account](ctx, unused, b.table, keyOne, &pgbaton.RowOpts{Wait: -2 * time.Second})
				return err
			},
			"TxOpts.Isolation": func() error {
				return s.way.InTx(ctx, &pgbaton.TxOpts{Isolation: "none; DROP TABLE x"}, nil)
			},
		} {
			require.ErrorContains(t, call(), text)
		}
	})
}
