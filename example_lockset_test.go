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

	_, held := locks.Token(to)
	fmt.Println("both are held:", held && locks.Err() == nil)
	_, err = client.TryAcquire(ctx, from)
	fmt.Println("by nobody else:", errors.Is(err, pgbaton.ErrNotAcquired))
	if err := locks.Release(ctx); err != nil {
		log.Fatal(err)
	}
	// Output:
	// both are held: true
	// by nobody else: true
}

// Exclusive while something is changed, then shared with those who read it.
func ExampleLock_Downgrade() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	key := pgbaton.Name("example/prices")
	lock, err := client.Acquire(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	defer lock.Release(ctx)
	if err := lock.Downgrade(ctx); err != nil { // nobody can change it in between
		log.Fatal(err)
	}
	reader, err := client.TryAcquireShared(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	defer reader.Release(ctx)
	_, err = client.TryAcquire(ctx, key)
	fmt.Println("others read, and nobody writes:", errors.Is(err, pgbaton.ErrNotAcquired))
	// Output: others read, and nobody writes: true
}

// A transaction that counts on a permit: it fails when the permit has expired, and until it ends nobody else is
// given its place.
func ExampleAssertPermit() {
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
		if err := pgbaton.AssertPermit(ctx, tx, permit); err != nil {
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
