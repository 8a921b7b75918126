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
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
)

func Example() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := pgbaton.Migrate(ctx, pool); err != nil {
		log.Fatal(err)
	}
	client, err := pgbaton.New(ctx, pool, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)

	err = client.Do(ctx, pgbaton.Name("example/invoice/42"), func(ctx context.Context, lock *pgbaton.Lock) error {
		fmt.Println("only one process is here; has a token:", lock.Token() > 0)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: only one process is here; has a token: true
}

// exampleClient is a client on a database with the schema, as the first example makes it.
func exampleClient(ctx context.Context) *pgbaton.Client {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if err := pgbaton.Migrate(ctx, pool); err != nil {
		log.Fatal(err)
	}
	client, err := pgbaton.New(ctx, pool, nil)
	if err != nil {
		log.Fatal(err)
	}
	return client
}

func ExampleAssertHeld() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	key := pgbaton.Name("example/ledger/42")
	err = client.DoTx(ctx, pool, key, nil, func(ctx context.Context, tx pgx.Tx, lock *pgbaton.Lock) error {
		if err := pgbaton.AssertHeld(ctx, tx, lock); err != nil { // before the first write
			return err
		}
		_, err := tx.Exec(ctx, "CREATE TEMP TABLE ledger ON COMMIT DROP AS SELECT 42 AS id, 10 AS balance")
		return err
	})
	fmt.Println("written by a holder that nobody has overtaken:", err == nil)
	// Output: written by a holder that nobody has overtaken: true
}

func ExampleClient_Acquire() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	wait, cancel := context.WithTimeout(ctx, 5*time.Second) // for the lock, not for the work
	defer cancel()
	lock, err := client.Acquire(wait, pgbaton.Name("example/report"))
	if errors.Is(err, pgbaton.ErrNotAcquired) {
		fmt.Println("somebody else had it for 5 s")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Release(ctx)

	// The work ends early when the lock is lost.
	select {
	case <-lock.Done():
		fmt.Println("lost:", lock.Err())
	case <-time.After(time.Millisecond):
		fmt.Println("work done")
	}
	if err := lock.Release(ctx); err != nil { // ErrLost: somebody else may have worked at the same time
		log.Fatal(err)
	}
	// Output: work done
}

func ExampleClient_TryAcquire() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	lock, err := client.TryAcquire(ctx, pgbaton.Name("example/nightly"))
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Release(ctx)

	_, err = client.TryAcquire(ctx, pgbaton.Name("example/nightly"))
	fmt.Println(errors.Is(err, pgbaton.ErrNotAcquired))
	// Output: true
}

func ExampleClient_AcquireShared() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	reader, err := client.AcquireShared(ctx, pgbaton.Name("example/catalogue"))
	if err != nil {
		log.Fatal(err)
	}
	another, err := client.AcquireShared(ctx, pgbaton.Name("example/catalogue"))
	if err != nil {
		log.Fatal(err)
	}
	_, err = client.TryAcquire(ctx, pgbaton.Name("example/catalogue"))
	fmt.Println("a writer must wait:", errors.Is(err, pgbaton.ErrNotAcquired))
	fmt.Println(reader.Release(ctx), another.Release(ctx))
	// Output:
	// a writer must wait: true
	// <nil> <nil>
}

func ExampleAcquireTx() {
	ctx := context.Background()
	exampleClient(ctx).Close(ctx) // only for the schema
	db, err := sql.Open("pgx", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer tx.Rollback()
	token, err := pgbaton.AcquireTx(ctx, pgbaton.SQLTx(tx), pgbaton.Name("example/account/7"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("held until the commit, with a token:", token > 0)
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	// Output: held until the commit, with a token: true
}
