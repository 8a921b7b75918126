package pgbaton_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pgbaton/pgbaton"
)

func ExampleInTx() {
	ctx := context.Background()
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	opts := &pgbaton.TxOpts{Isolation: pgx.Serializable}
	err := pgbaton.InTx(ctx, conn, opts, func(ctx context.Context, tx pgx.Tx) error {
		// Runs again from here after a serialization failure or a deadlock.
		_, err := tx.Exec(ctx, "UPDATE accounts SET balance = balance + 1 WHERE owner = 'Ada'")
		return err
	})
	switch {
	case errors.Is(err, pgbaton.ErrCommitUnknown):
		fmt.Println("look before doing it again")
	case errors.Is(err, pgbaton.ErrConflict), errors.Is(err, pgbaton.ErrDeadlock):
		fmt.Println("too busy, try later")
	default:
		fmt.Println(err)
	}
	// Output: <nil>
}

func ExampleInSQLTx() {
	ctx := context.Background()
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	lend := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "CREATE TEMP TABLE books (id int, title text) ON COMMIT DROP")
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO books VALUES (1, 'Emma')")
		if err != nil {
			return err
		}
		opts := &pgbaton.RowOpts{Strength: "FOR SHARE", Column: "title"}
		title, err := pgbaton.LockRow[string](ctx, pgbaton.SQLTx(tx), pgx.Identifier{"books"}, pgbaton.Values{"id": 1}, opts)
		fmt.Println(title)
		return err
	}
	fmt.Println(pgbaton.InSQLTx(ctx, db, nil, lend))
	// Output:
	// Emma
	// <nil>
}

// A write of one's own to a table with the trigger pgbaton.fence_guard fails with the server's error.
func ExampleTranslate() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := pgbaton.Migrate(ctx, pool); err != nil {
		log.Fatal(err)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			CREATE TEMP TABLE ledger (id int, balance int, fence bigint) ON COMMIT DROP;
			CREATE TRIGGER fence_guard BEFORE UPDATE ON ledger FOR EACH ROW EXECUTE FUNCTION pgbaton.fence_guard();
			INSERT INTO ledger VALUES (42, 100, 4711)`)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE ledger SET balance = 90, fence = $1 WHERE id = 42", int64(4000))
		return err
	})
	var stale *pgbaton.StaleTokenError
	if errors.As(pgbaton.Translate(err), &stale) {
		fmt.Println("too late:", stale.Token, "is older than", stale.Newest)
	}
	// Output: too late: 4000 is older than 4711
}

func ExampleClient_DoSQLTx() {
	ctx := context.Background()
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	client, err := pgbaton.New(ctx, db, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)

	key, opts := pgbaton.Name("example/balance"), &pgbaton.LockOpts{Fence: true}
	err = client.DoSQLTx(ctx, db, key, opts, func(ctx context.Context, tx *sql.Tx, _ *pgbaton.Lock) error {
		_, err := tx.ExecContext(ctx, "CREATE TEMP TABLE balance ON COMMIT DROP AS SELECT 42 AS id")
		return err
	})
	fmt.Println("committed, by a holder that nobody has overtaken:", err == nil)
	// Output: committed, by a holder that nobody has overtaken: true
}
