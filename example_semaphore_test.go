package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

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
