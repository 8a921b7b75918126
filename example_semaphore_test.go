package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pgbaton/pgbaton"
)

func ExampleClient_Semaphore() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	// At most eight pages are rendered at the same time, by all processes together.
	render, err := client.Semaphore(ctx, "example/render", 8)
	if err != nil {
		log.Fatal(err)
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second) // for the permits, not for the work
	defer cancel()
	permit, err := render.Acquire(wait, 2) // a large page counts for two
	if errors.Is(err, pgbaton.ErrNotAcquired) {
		fmt.Println("too busy for 5 s")
		return
	}
	if err != nil {
		log.Fatal(err)
	}
	defer permit.Release(ctx)

	// The work ends early when the permits are lost.
	select {
	case <-permit.Done():
		fmt.Println("lost:", permit.Err())
	case <-time.After(time.Millisecond):
		fmt.Println("rendered with a token:", permit.Token() > 0)
	}
	if err := permit.Release(ctx); err != nil { // ErrLost: more than eight may have been at work
		log.Fatal(err)
	}
	// Output: rendered with a token: true
}

func ExampleSemaphore_TryAcquire() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	partner, err := client.Semaphore(ctx, "example/partner", 1)
	if err != nil {
		log.Fatal(err)
	}
	permit, err := partner.TryAcquire(ctx, 1)
	if err != nil {
		log.Fatal(err)
	}
	_, err = partner.TryAcquire(ctx, 1)
	fmt.Println("none is free:", errors.Is(err, pgbaton.ErrNotAcquired))
	if err := permit.Release(ctx); err != nil {
		log.Fatal(err)
	}
	state, err := partner.State(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("free now:", state.Available, "of", state.Capacity)
	// Output:
	// none is free: true
	// free now: 1 of 1
}

// The capacity has been 8, then 12, and is 10 now: whoever changed it in the code has counted.
func ExampleSemaphoreOpts() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	crawl, err := client.Semaphore(ctx, "example/crawl", 10, &pgbaton.SemaphoreOpts{Revision: 3})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := crawl.Acquire(ctx, 4); err != nil {
		log.Fatal(err)
	}
	state, err := crawl.State(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, holder := range state.Holders {
		fmt.Println("somebody has", holder.Permits, "of", state.Capacity)
	}
	// Output: somebody has 4 of 10
}

func ExampleSemaphore_Resize() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	mail, err := client.Semaphore(ctx, "example/mail", 2)
	if err != nil {
		log.Fatal(err)
	}
	if err := mail.Resize(ctx, 5); err != nil {
		log.Fatal(err)
	}
	_, err = client.Semaphore(ctx, "example/mail", 2)
	fmt.Println("another capacity than it has:", errors.Is(err, pgbaton.ErrCapacityMismatch))
	opened, err := client.Semaphore(ctx, "example/mail", 0) // whatever its capacity is
	if err != nil {
		log.Fatal(err)
	}
	state, err := opened.State(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("free:", state.Available)
	if err := opened.Resize(ctx, 2); err != nil {
		log.Fatal(err)
	}
	// Output:
	// another capacity than it has: true
	// free: 5
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
