package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
)

// A transfer between two accounts, in whichever direction.
func ExampleClient_AcquireAll() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	from, to := pgbaton.Name("example/account/7"), pgbaton.Name("example/account/3")
	locks, err := client.AcquireAll(ctx, from, to)
	if err != nil {
		log.Fatal(err)
	}
	defer locks.Release(ctx)

	fmt.Println("both are held:", locks.Lock(to).Token() > 0 && locks.Err() == nil)
	_, err = client.TryAcquireAll(ctx, from, pgbaton.Name("example/account/9"))
	fmt.Println("by nobody else:", errors.Is(err, pgbaton.ErrNotAcquired))
	if err := locks.Release(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// both are held: true
	// by nobody else: true
}

// A transaction that counts on a permit: it fails when the permit has expired, and until it ends nobody else is
// given its place.
func ExamplePermit_Assert() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	imports, err := client.Semaphore(ctx, "example/imports", 3)
	if err != nil {
		log.Fatal(err)
	}
	permit, err := imports.Acquire(ctx, 1)
	if err != nil {
		log.Fatal(err)
	}
	defer permit.Release(ctx)
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := permit.Assert(ctx, tx); err != nil {
			return err // ErrStaleToken, or ErrLost
		}
		fmt.Println("importing")
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output: importing
}
