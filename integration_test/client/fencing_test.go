package client

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// beginner begins transactions on connections of their own.
type beginner func(t *testing.T, level pgx.TxIsoLevel) pgbaton.Tx

func beginPgx(dsn string) beginner {
	return func(t *testing.T, level pgx.TxIsoLevel) pgbaton.Tx {
		t.Helper()
		tx, err := testkit.Connect(t, dsn).BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
		require.NoError(t, err)
		return tx
	}
}

func beginSQL(dsn string) beginner {
	return func(t *testing.T, level pgx.TxIsoLevel) pgbaton.Tx {
		t.Helper()
		db, err := sql.Open("pgx", dsn)
		require.NoError(t, err)
		t.Cleanup(func() { _ = db.Close() })
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: map[pgx.TxIsoLevel]sql.IsolationLevel{
			pgx.RepeatableRead: sql.LevelRepeatableRead, pgx.Serializable: sql.LevelSerializable,
		}[level]})
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback() })
		return pgbaton.SQLTx(tx)
	}
}

// once fences in a transaction of its own and commits.
func (begin beginner) once(t *testing.T, fence func(tx pgbaton.Tx) error) error {
	t.Helper()
	tx := begin(t, pgx.ReadCommitted)
	if err := fence(tx); err != nil {
		require.NoError(t, tx.Rollback(t.Context()))
		return err
	}
	return tx.Commit(t.Context())
}

// inBackground runs a call that waits, and returns when it does.
func inBackground(t *testing.T, observer *pgx.Conn, call func() error) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	require.Eventually(t, func() bool {
		var waits bool
		err := observer.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waits)
		return err == nil && waits
	}, testkit.Patience, 2*time.Millisecond)
	return done
}

func TestFence(t *testing.T) {
	t.Parallel()
	for name, begins := range map[string]func(dsn string) beginner{"pgx.Tx": beginPgx, "sql.Tx": beginSQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testkit.Context(t)
			dsn := testkit.Migrated(t)
			begin := begins(dsn)
			fence := func(resource string, token pgbaton.Token) error {
				return begin.once(t, func(tx pgbaton.Tx) error { return pgbaton.Fence(ctx, tx, resource, token) })
			}
			for _, resource := range []string{
				"ledger/42", "ledger", `'; DROP SCHEMA pgbaton CASCADE; --`, `\'$1`, "größe \U0010ffff", " ", "%s%I", `"`,
				strings.Repeat("x", 512),
			} {
				require.NoError(t, fence(resource, 5))
				require.NoError(t, fence(resource, 5), "the same again")
				require.NoError(t, fence(resource, 9))
				err := fence(resource, 8)
				require.ErrorIs(t, err, pgbaton.ErrStaleToken)
				var stale *pgbaton.StaleTokenError
				require.ErrorAs(t, err, &stale)
				require.Equal(t, &pgbaton.StaleTokenError{Resource: resource, Token: 8, Newest: 9}, stale)
				require.NoError(t, fence(resource, 1<<49))
			}
			// One that was rolled back was not seen.
			tx := begin(t, pgx.ReadCommitted)
			require.NoError(t, pgbaton.Fence(ctx, tx, "undone", 9))
			require.NoError(t, tx.Rollback(ctx))
			require.NoError(t, fence("undone", 5))
		})
	}
}

func TestFence_Refuses(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	tx := beginPgx(testkit.Migrated(t))(t, pgx.ReadCommitted)
	for _, c := range []struct {
		resource string
		token    pgbaton.Token
		text     string
	}{
		{"", 1, "is empty"},
		{strings.Repeat("x", 513), 1, "has 513 bytes"},
		{"a\x00", 1, "not UTF-8 without NUL"},
		{"\xff", 1, "not UTF-8 without NUL"},
		{"pgbaton:key:1", 1, "which is for the keys of locks"},
		{"a", 0, "token 0 means none"},
		{"a", -1, "-1 is not a token"},
		{"a", 1 << 53, "is not a token"},
	} {
		require.ErrorContains(t, pgbaton.Fence(ctx, tx, c.resource, c.token), c.text)
		require.ErrorContains(t, pgbaton.Fence(ctx, tx, c.resource, c.token, &pgbaton.LockOpts{Shared: true}), c.text)
	}
	require.NoError(t, pgbaton.Fence(ctx, tx, "a", 1), "none of these was sent")

	empty := beginPgx(testkit.Empty(t))(t, pgx.ReadCommitted)
	require.ErrorIs(t, pgbaton.Fence(ctx, empty, "a", 1), pgbaton.ErrSchema)
}

// A newer token's first fenced write waits for the transaction of an older one; an older one waits
// for a newer one's, and is refused.
func TestFence_Waits(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	begin, observer := beginPgx(dsn), testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	for _, known := range []bool{false, true} {
		for _, commit := range []bool{false, true} {
			resource := fmt.Sprintf("known %v, commit %v", known, commit)
			if known {
				require.NoError(t, begin.once(t, func(tx pgbaton.Tx) error { return pgbaton.Fence(ctx, tx, resource, 1) }))
			}
			end := func(tx pgbaton.Tx) error { return tx.Rollback(ctx) }
			if commit {
				end = func(tx pgbaton.Tx) error { return tx.Commit(ctx) }
			}
			older, newer, late := begin(t, pgx.ReadCommitted), begin(t, pgx.ReadCommitted), begin(t, pgx.ReadCommitted)
			require.NoError(t, pgbaton.Fence(ctx, older, resource, 5))
			done := inBackground(t, observer, func() error { return pgbaton.Fence(ctx, newer, resource, 9) })
			require.NoError(t, end(older))
			require.NoError(t, <-done)

			done = inBackground(t, observer, func() error { return pgbaton.Fence(ctx, late, resource, 5) })
			require.NoError(t, end(newer))
			if commit {
				require.ErrorIs(t, <-done, pgbaton.ErrStaleToken)
			} else {
				require.NoError(t, <-done)
			}
			require.NoError(t, late.Rollback(ctx))
		}
	}
}

func TestFence_WaitEnds(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	begin, ctx := beginPgx(dsn), t.Context()
	require.NoError(t, pgbaton.Fence(ctx, begin(t, pgx.ReadCommitted), "a", 5))

	tx := begin(t, pgx.ReadCommitted)
	_, err := tx.(pgx.Tx).Exec(ctx, "SET LOCAL lock_timeout = '20ms'")
	require.NoError(t, err)
	require.ErrorIs(t, pgbaton.Fence(ctx, tx, "a", 9), pgbaton.ErrNotAcquired)

	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, pgbaton.Fence(short, begin(t, pgx.ReadCommitted), "a", 9), context.DeadlineExceeded)
}

// Shared tokens are compared and not recorded, and do not wait for one another, whether the resource is
// known yet or not. An exclusive one waits for them.
func TestFenceShared(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	begin, observer := beginPgx(dsn), testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		for _, known := range []bool{false, true} {
			resource := fmt.Sprintf("known %v, %s", known, level)
			if known {
				require.NoError(t, begin.once(t, func(tx pgbaton.Tx) error { return pgbaton.Fence(ctx, tx, resource, 1) }))
			}
			first, second, writer := begin(t, level), begin(t, level), begin(t, pgx.ReadCommitted)
			require.NoError(t, pgbaton.Fence(ctx, first, resource, 7, &pgbaton.LockOpts{Shared: true}))
			require.NoError(t, pgbaton.Fence(ctx, second, resource, 5, &pgbaton.LockOpts{Shared: true}))
			require.NoError(t, pgbaton.Fence(ctx, first, resource, 7, &pgbaton.LockOpts{Shared: true}))
			done := inBackground(t, observer, func() error { return pgbaton.Fence(ctx, writer, resource, 6) })
			require.NoError(t, first.Commit(ctx))
			require.Empty(t, done, "the second has not ended")
			require.NoError(t, second.Commit(ctx))
			require.NoError(t, <-done, "7 was not recorded")

			late := begin(t, pgx.ReadCommitted)
			done = inBackground(t, observer, func() error { return pgbaton.Fence(ctx, late, resource, 5, &pgbaton.LockOpts{Shared: true}) })
			require.NoError(t, writer.Commit(ctx))
			require.ErrorIs(t, <-done, pgbaton.ErrStaleToken)
			require.NoError(t, begin.once(t, func(tx pgbaton.Tx) error { return pgbaton.Fence(ctx, tx, resource, 7, &pgbaton.LockOpts{Shared: true}) }))
		}
	}
}

// Above READ COMMITTED, whoever fenced after the snapshot is a conflict; the next attempt tells.
func TestFence_Isolation(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	begin, conn := beginPgx(dsn), testkit.Connect(t, dsn)
	ctx := testkit.Context(t)
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		for name, opts := range map[string]*pgbaton.LockOpts{"Exclusive": nil, "Shared": {Shared: true}} {
			for _, known := range []bool{false, true} {
				resource := fmt.Sprintf("%s, %s, known %v", level, name, known)
				if known {
					require.NoError(t, begin.once(t, func(tx pgbaton.Tx) error { return pgbaton.Fence(ctx, tx, resource, 1) }))
				}
				attempts := 0
				err := pgbaton.InTx(ctx, conn, &pgbaton.TxOpts{Isolation: level}, func(ctx context.Context, tx pgx.Tx) error {
					attempts++
					if _, err := tx.Exec(ctx, "SELECT 1"); err != nil {
						return err
					}
					if attempts == 1 {
						require.NoError(t, begin.once(t, func(tx pgbaton.Tx) error { return pgbaton.Fence(ctx, tx, resource, 9) }))
					}
					err := pgbaton.Fence(ctx, tx, resource, 5, opts)
					if attempts == 1 {
						require.ErrorIs(t, err, pgbaton.ErrConflict)
						require.NotErrorIs(t, err, pgbaton.ErrStaleToken)
					}
					return err
				})
				require.ErrorIs(t, err, pgbaton.ErrStaleToken, resource)
				require.Equal(t, 2, attempts)
			}
		}
	}
}

func TestToken_JSONAndText(t *testing.T) {
	t.Parallel()
	type message struct {
		Token pgbaton.Token `json:"token,omitempty"`
	}
	for text, token := range map[string]pgbaton.Token{`{"token":9007199254740991}`: 1<<53 - 1, `{}`: 0, `{"token":32}`: 32} {
		b, err := json.Marshal(message{token})
		require.NoError(t, err)
		require.JSONEq(t, text, string(b))
		var got message
		require.NoError(t, json.Unmarshal(b, &got))
		require.Equal(t, token, got.Token)
		var float map[string]float64 // as JavaScript reads it
		require.NoError(t, json.Unmarshal(b, &float))
		require.Equal(t, token, pgbaton.Token(float["token"]))
	}
	require.Equal(t, "9007199254740991", fmt.Sprint(pgbaton.Token(1<<53-1)))
}
