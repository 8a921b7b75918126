package pgbaton_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
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
		opts := &pgbaton.RowOpts{Strength: pgbaton.ForShare, Column: "title"}
		title, err := pgbaton.LockRow[string](ctx, pgbaton.SQLTx(tx), pgx.Identifier{"books"}, pgbaton.Values{"id": 1}, opts)
		fmt.Println(title)
		return err
	}
	fmt.Println(pgbaton.InSQLTx(ctx, db, nil, lend))
	// Output:
	// Emma
	// <nil>
}
