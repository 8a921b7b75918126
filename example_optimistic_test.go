package pgbaton_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
)

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

	var handle pgbaton.Querier = pgbaton.SQLDB(conn)
	key, set, opts := pgbaton.Values{"id": 1}, pgbaton.Values{"title": "Persuasion"}, &pgbaton.VersionOpts{Column: "revision"}
	fmt.Println(pgbaton.UpdateVersion(ctx, handle, pgx.Identifier{"pages"}, key, 6, set, opts))
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
