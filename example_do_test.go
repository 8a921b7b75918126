package pgbaton_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pgbaton/pgbaton"
)

func ExampleClient_DoWith() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	opts := &pgbaton.LockOpts{
		Wait:    5 * time.Second, // for the lock; the work may take longer
		MaxHold: time.Minute,     // after which a func that hangs has lost it
	}
	err := client.DoWith(ctx, pgbaton.Name("example/report"), opts, func(context.Context, *pgbaton.Lock) error {
		fmt.Println("the report is written")
		return nil
	})
	if errors.Is(err, pgbaton.ErrNotAcquired) {
		fmt.Println("somebody else had it for 5 s")
	}
	// Output: the report is written
}

func ExampleClient_DoAll() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	accounts := []pgbaton.Key{pgbaton.Name("example/account/7"), pgbaton.Name("example/account/3")}
	err := client.DoAll(ctx, accounts, nil, func(_ context.Context, locks *pgbaton.LockSet) error {
		for _, key := range accounts {
			fmt.Println(key, "is held, with a token:", locks.Lock(key).Token() > 0)
		}
		return locks.Err()
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// "example/account/7" is held, with a token: true
	// "example/account/3" is held, with a token: true
}

func ExampleSemaphore_Do() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)
	partner, err := client.Semaphore(ctx, "example/partner/do", 2)
	if err != nil {
		log.Fatal(err)
	}

	err = partner.Do(ctx, 1, &pgbaton.LockOpts{Wait: pgbaton.NoWait}, func(context.Context, *pgbaton.Permit) error {
		fmt.Println("the partner is called")
		return nil
	})
	if errors.Is(err, pgbaton.ErrNotAcquired) {
		fmt.Println("two are calling it")
	}
	// Output: the partner is called
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

func ExampleClient_OnceWith() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)
	const job = "example/nightly/with"
	_ = client.ForgetRun(ctx, job) // as if it had never run

	run := func(outcome error) error {
		opts := &pgbaton.LockOpts{RetryFailed: true}
		return client.OnceWith(ctx, job, 24*time.Hour, opts, func(context.Context, *pgbaton.Lock) error { return outcome })
	}
	fmt.Println("first:", run(errors.New("disk full")))
	last, err := client.LastRun(ctx, job)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("failed:", last.Failed, last.Error)
	fmt.Println("again:", run(nil))
	fmt.Println("done for today:", errors.Is(run(nil), pgbaton.ErrNotAcquired))
	// Output:
	// first: disk full
	// failed: true disk full
	// again: <nil>
	// done for today: true
}
