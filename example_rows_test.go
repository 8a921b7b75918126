package pgbaton_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
)

// mustConnect connects to DATABASE_URL and makes some tables that only this connection sees.
func mustConnect(ctx context.Context) *pgx.Conn {
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	_, err = conn.Exec(ctx, `
		CREATE TEMP TABLE accounts (id bigint PRIMARY KEY, owner text, balance bigint, version int DEFAULT 1);
		INSERT INTO accounts VALUES (1, 'Ada', 100), (2, 'Grace', 50);
		CREATE TEMP TABLE jobs (id bigint PRIMARY KEY, state text, priority int);
		INSERT INTO jobs VALUES (1, 'ready', 0), (2, 'ready', 9), (3, 'done', 5), (4, 'ready', 5)`)
	if err != nil {
		log.Fatal(err)
	}
	return conn
}

// Account is a row of the table accounts.
type Account struct {
	ID      int64
	Owner   string
	Balance int64
}

var accounts = pgx.Identifier{"accounts"}

func ExampleLockRow() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	err := pgbaton.InTx(ctx, conn, nil, func(ctx context.Context, tx pgx.Tx) error {
		opts := &pgbaton.RowOpts{Wait: 2 * time.Second}
		account, err := pgbaton.LockRow[Account](ctx, tx, accounts, pgbaton.Values{"id": 1}, opts)
		if errors.Is(err, pgbaton.ErrNotAcquired) {
			return errors.New("somebody else is busy with the account")
		}
		if err != nil {
			return err
		}
		// Nobody changes the account until the transaction ends.
		fmt.Println(account.Owner, account.Balance)
		_, err = tx.Exec(ctx, "UPDATE accounts SET balance = $1 WHERE id = $2", account.Balance-30, account.ID)
		return err
	})
	fmt.Println(err)
	// Output:
	// Ada 100
	// <nil>
}

// Both accounts are locked in the order of their keys, so two transfers in opposite directions cannot deadlock. They are
// returned in the order in which they were asked for.
func ExampleLockRows() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	err := pgbaton.InTx(ctx, conn, nil, func(ctx context.Context, tx pgx.Tx) error {
		keys := []pgbaton.Values{{"id": 2}, {"id": 1}}
		locked, err := pgbaton.LockRows[Account](ctx, tx, accounts, keys, nil)
		if err != nil {
			return err
		}
		from, to := locked[0], locked[1]
		fmt.Println("from", from.Owner, "to", to.Owner)
		return nil
	})
	fmt.Println(err)
	// Output:
	// from Grace to Ada
	// <nil>
}

func ExampleClaimRows() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	err := pgbaton.InTx(ctx, conn, nil, func(ctx context.Context, tx pgx.Tx) error {
		// The worker has room for two jobs. Those that other workers hold are passed over.
		jobs, err := pgbaton.ClaimRows[int64](ctx, tx, pgx.Identifier{"jobs"}, 2, &pgbaton.ClaimOpts{
			Where:   "state = $1",
			Args:    []any{"ready"},
			OrderBy: "priority DESC, id",
			Column:  "id",
		})
		if err != nil {
			return err
		}
		fmt.Println("jobs", jobs)
		_, err = tx.Exec(ctx, "UPDATE jobs SET state = 'done' WHERE id = ANY ($1)", jobs)
		return err
	})
	fmt.Println(err)
	// Output:
	// jobs [2 4]
	// <nil>
}

func ExampleUpdateVersion() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	// The version came with the page that the user has edited.
	key, set := pgbaton.Values{"id": 1}, pgbaton.Values{"owner": "Ada Lovelace"}
	version, err := pgbaton.UpdateVersion(ctx, conn, accounts, key, 1, set, nil)
	fmt.Println(version, err)

	// Another user has edited the same page.
	_, err = pgbaton.UpdateVersion(ctx, conn, accounts, key, 1, set, nil)
	var conflict *pgbaton.ConflictError
	if errors.As(err, &conflict) {
		fmt.Println("changed meanwhile, now version", conflict.Current)
	}
	// Output:
	// 2 <nil>
	// changed meanwhile, now version 2
}

// The same with database/sql.
func ExampleSQLDB() {
	ctx := context.Background()
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	conn, err := db.Conn(ctx) // only because a temporary table is seen by one connection
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	_, err = conn.ExecContext(ctx, `
		CREATE TEMP TABLE pages (id int PRIMARY KEY, title text, revision int NOT NULL);
		INSERT INTO pages VALUES (1, 'Emma', 6)`)
	if err != nil {
		log.Fatal(err)
	}

	retitle := func(db pgbaton.Querier, revision int64, title string) (int64, error) {
		key, set, opts := pgbaton.Values{"id": 1}, pgbaton.Values{"title": title}, &pgbaton.VersionOpts{Column: "revision"}
		return pgbaton.UpdateVersion(ctx, db, pgx.Identifier{"pages"}, key, revision, set, opts)
	}
	fmt.Println(retitle(pgbaton.SQLDB(conn), 6, "Persuasion"))
	// Output: 7 <nil>
}

func ExampleDeleteVersion() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	err := pgbaton.DeleteVersion(ctx, conn, accounts, pgbaton.Values{"id": 1}, 7, nil)
	fmt.Println(errors.Is(err, pgbaton.ErrConflict))
	err = pgbaton.DeleteVersion(ctx, conn, accounts, pgbaton.Values{"id": 3}, 7, nil)
	fmt.Println(errors.Is(err, pgbaton.ErrNotFound))
	// Output:
	// true
	// true
}

func ExampleMutate() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	account, err := pgbaton.Mutate(ctx, conn, accounts, pgbaton.Values{"id": 1}, nil, func(a *Account) error {
		if a.Balance < 30 {
			return errors.New("not enough money")
		}
		a.Balance -= 30
		return nil
	})
	fmt.Println(account.Balance, err)
	// Output: 70 <nil>
}
