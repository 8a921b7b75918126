package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	hammerGoroutines = 8
	hammerRows       = 10
)

// hammerProcesses is how many processes a hammer has; to start them, with their connections, is most of a brief one.
func hammerProcesses() int { return testkit.Brief(8, 4) }

var hammerTable = pgx.Identifier{"accounts"}

// hammerMethods each add one to the sum of all balances. Between a method's read and its write another's
// write would be lost.
var hammerMethods = map[string]struct {
	updates int
	add     func(ctx context.Context, pool *pgxpool.Pool) error
}{
	"LockRow":       {4_000, addByLockRow},
	"LockRows":      {4_000, addByLockRows},
	"ClaimRows":     {4_000, addByClaimRows},
	"UpdateVersion": {4_000, addByUpdateVersion},
	"Mutate":        {4_000, addByMutate},
	"InTx":          {4_000, addBySerializable},
	"Deadlocks":     {200, addCrosswise}, // most cost a deadlock_timeout
}

// TestRowsHammer lets 8 goroutines of each of 8 processes, in brief 4, change ten rows by each method. The balances are exact at the
// end only if no update was lost or done twice, and no error is left only if every deadlock was resolved.
func TestRowsHammer(t *testing.T) {
	dsn := testkit.Migrated(t)
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	require.NoError(t, err)
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint, version bigint) WITH (fillfactor = 50)")
	require.NoError(t, err)

	for name, method := range hammerMethods {
		t.Run(name, func(t *testing.T) {
			_, err := conn.Exec(ctx, "TRUNCATE accounts")
			require.NoError(t, err)
			_, err = conn.Exec(ctx, "INSERT INTO accounts SELECT i, 0, 1 FROM generate_series(1, $1::int) i", hammerRows)
			require.NoError(t, err)
			start := time.Now()
			updates := testkit.Brief(method.updates, method.updates/16) / hammerProcesses() * hammerProcesses()
			runHammer(t, dsn, name, updates/hammerProcesses())
			var sum, versions int
			require.NoError(t, conn.QueryRow(ctx, "SELECT sum(balance), sum(version - 1) FROM accounts").Scan(&sum, &versions))
			require.Equal(t, updates, sum)
			testkit.Figure(t, "%s: %d updates in %v, %d of them by version", name, sum, time.Since(start).Round(time.Millisecond), versions)
		})
	}
}

// runHammer runs the test binary again, as several processes at once, each of which makes so many updates.
func runHammer(t *testing.T, dsn, method string, each int) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	var (
		processes sync.WaitGroup
		errs      = make([]error, hammerProcesses())
		outputs   = make([][]byte, hammerProcesses())
	)
	for i := range hammerProcesses() {
		worker := exec.CommandContext(t.Context(), self)
		worker.Env = append(os.Environ(), "PGBATON_HAMMER_METHOD="+method, "PGBATON_HAMMER_DSN="+dsn, "PGBATON_HAMMER_UPDATES="+strconv.Itoa(each))
		processes.Go(func() { outputs[i], errs[i] = worker.CombinedOutput() })
	}
	processes.Wait()
	for i := range hammerProcesses() {
		require.NoError(t, errs[i], string(outputs[i]))
	}
}

// TestMain runs the tests, or is one process of TestRowsHammer.
func TestMain(m *testing.M) {
	method := os.Getenv("PGBATON_HAMMER_METHOD")
	if method == "" {
		os.Exit(m.Run())
	}
	if err := hammer(method); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// hammer makes this process's share of the updates by a method.
func hammer(name string) error {
	method := hammerMethods[name]
	updates, err := strconv.ParseInt(os.Getenv("PGBATON_HAMMER_UPDATES"), 10, 64)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*testkit.Patience)
	defer cancel()
	config, err := pgxpool.ParseConfig(os.Getenv("PGBATON_HAMMER_DSN"))
	if err != nil {
		return err
	}
	config.MaxConns = hammerGoroutines
	config.ConnConfig.RuntimeParams["synchronous_commit"] = "off"
	config.ConnConfig.RuntimeParams["deadlock_timeout"] = strconv.Itoa(20 + rand.IntN(20))
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()

	var left atomic.Int64
	left.Store(updates)
	var goroutines sync.WaitGroup
	errs := make([]error, hammerGoroutines)
	for i := range hammerGoroutines {
		goroutines.Go(func() {
			for errs[i] == nil && left.Add(-1) >= 0 {
				errs[i] = method.add(ctx, pool)
			}
		})
	}
	goroutines.Wait()
	return errors.Join(errs...)
}

type hammerRow struct {
	ID      int
	Balance int64
	Version int64
}

func hammerKey(id int) pgbaton.Values { return pgbaton.Values{"id": id} }

func randomHammerKey() pgbaton.Values { return hammerKey(1 + rand.IntN(hammerRows)) }

func setBalance(ctx context.Context, tx pgx.Tx, id int, balance int64) error {
	_, err := tx.Exec(ctx, "UPDATE accounts SET balance = $2 WHERE id = $1", id, balance)
	return err
}

func addByLockRow(ctx context.Context, pool *pgxpool.Pool) error {
	return pgbaton.InTx(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		row, err := pgbaton.LockRow[hammerRow](ctx, tx, hammerTable, randomHammerKey(), nil)
		if err != nil {
			return err
		}
		return setBalance(ctx, tx, row.ID, row.Balance+1)
	})
}

// addByLockRows moves something between rows as well, and must not need a second attempt.
func addByLockRows(ctx context.Context, pool *pgxpool.Pool) error {
	return pgbaton.InTx(ctx, pool, &pgbaton.TxOpts{MaxAttempts: 1}, func(ctx context.Context, tx pgx.Tx) error {
		ids := rand.Perm(hammerRows)[:3]
		keys := []pgbaton.Values{hammerKey(1 + ids[0]), hammerKey(1 + ids[1]), hammerKey(1 + ids[2])}
		rows, err := pgbaton.LockRows[hammerRow](ctx, tx, hammerTable, keys, nil)
		if err != nil {
			return err
		}
		return errors.Join(
			setBalance(ctx, tx, rows[0].ID, rows[0].Balance+6),
			setBalance(ctx, tx, rows[1].ID, rows[1].Balance-3),
			setBalance(ctx, tx, rows[2].ID, rows[2].Balance-2))
	})
}

func addByClaimRows(ctx context.Context, pool *pgxpool.Pool) error {
	for {
		claimed := false
		err := pgbaton.InTx(ctx, pool, nil, func(ctx context.Context, tx pgx.Tx) error {
			rows, err := pgbaton.ClaimRows[hammerRow](ctx, tx, hammerTable, 1,
				&pgbaton.ClaimOpts{Where: "balance >= $1", Args: []any{0}, OrderBy: "balance, id"})
			if err != nil || len(rows) == 0 {
				return err
			}
			claimed = true
			return setBalance(ctx, tx, rows[0].ID, rows[0].Balance+1)
		})
		if err != nil || claimed {
			return err
		}
	}
}

func addByUpdateVersion(ctx context.Context, pool *pgxpool.Pool) error {
	key := randomHammerKey()
	for {
		rows, err := pool.Query(ctx, "SELECT id, balance, version FROM accounts WHERE id = $1", key["id"])
		if err != nil {
			return err
		}
		row, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[hammerRow])
		if err != nil {
			return err
		}
		set := pgbaton.Values{"balance": row.Balance + 1}
		_, err = pgbaton.UpdateVersion(ctx, pool, hammerTable, key, row.Version, set, nil)
		if !errors.Is(err, pgbaton.ErrConflict) {
			return err
		}
	}
}

func addByMutate(ctx context.Context, pool *pgxpool.Pool) error {
	opts := &pgbaton.VersionOpts{MaxAttempts: 1000}
	_, err := pgbaton.Mutate(ctx, pool, hammerTable, randomHammerKey(), opts, func(row *hammerRow) error {
		row.Balance++
		return nil
	})
	return err
}

func addBySerializable(ctx context.Context, pool *pgxpool.Pool) error {
	opts := &pgbaton.TxOpts{Isolation: pgx.Serializable, MaxAttempts: 1000}
	return pgbaton.InTx(ctx, pool, opts, func(ctx context.Context, tx pgx.Tx) error {
		id := 1 + rand.IntN(hammerRows)
		var balance int64
		if err := tx.QueryRow(ctx, "SELECT balance FROM accounts WHERE id = $1", id).Scan(&balance); err != nil {
			return err
		}
		return setBalance(ctx, tx, id, balance+1)
	})
}

// addCrosswise locks two rows in random order, so that deadlocks are certain.
func addCrosswise(ctx context.Context, pool *pgxpool.Pool) error {
	opts := &pgbaton.TxOpts{MaxAttempts: 1000}
	return pgbaton.InTx(ctx, pool, opts, func(ctx context.Context, tx pgx.Tx) error {
		ids := rand.Perm(hammerRows)[:2]
		for _, id := range ids {
			if _, err := pgbaton.LockRow[hammerRow](ctx, tx, hammerTable, hammerKey(1+id), nil); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, "UPDATE accounts SET balance = balance + CASE id WHEN $1 THEN 3 ELSE -2 END WHERE id IN ($1, $2)",
			1+ids[0], 1+ids[1])
		return err
	})
}
