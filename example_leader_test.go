package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/pgbaton/pgbaton"
)

func ExampleClient_Lead() {
	ctx, shutdown := context.WithCancel(context.Background())
	client := exampleClient(ctx)
	defer client.Close(context.Background())

	err := client.Lead(ctx, "example/scheduler", func(ctx context.Context, lock *pgbaton.Lock) error {
		fmt.Println("this process leads; has a term:", lock.Token() > 0)
		shutdown() // as the signal to end the process would
		<-ctx.Done()
		return nil
	})
	fmt.Println("no longer a candidate:", errors.Is(err, context.Canceled))
	// Output:
	// this process leads; has a term: true
	// no longer a candidate: true
}

// An operator's program asks the leader to resign, whichever process it is in.
func ExampleClient_RequestResign() {
	ctx, shutdown := context.WithCancel(context.Background())
	client := exampleClient(ctx)
	defer client.Close(context.Background())

	over := make(chan bool)
	go func() {
		defer close(over)
		_ = client.Lead(ctx, "example/rebalancer", func(ctx context.Context, _ *pgbaton.Lock) error {
			<-ctx.Done()
			fmt.Println("told to resign:", errors.Is(context.Cause(ctx), pgbaton.ErrResigned))
			shutdown()
			return nil
		})
	}()
	leader, err := client.Leader(ctx, "example/rebalancer")
	for errors.Is(err, pgbaton.ErrNotFound) { // not elected yet
		time.Sleep(10 * time.Millisecond)
		leader, err = client.Leader(ctx, "example/rebalancer")
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("leads, in a term:", leader.Client != "" && leader.Token > 0)
	if err := client.RequestResign(ctx, "example/rebalancer"); err != nil {
		log.Fatal(err)
	}
	<-over
	// Output:
	// leads, in a term: true
	// told to resign: true
}

// What cron calls in every replica, once an hour.
func ExampleClient_Once() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	name := fmt.Sprint("example/hourly/", time.Now().UnixNano()) // in life: "hourly"
	for range 3 {
		err := client.Once(ctx, name, 30*time.Minute, func(context.Context, *pgbaton.Lock) error {
			fmt.Println("running")
			return nil
		})
		var notDue *pgbaton.NotDueError
		switch {
		case errors.As(err, &notDue):
			fmt.Println("not again before", notDue.Next.Sub(notDue.Last), "have passed")
		case err != nil:
			log.Fatal(err)
		}
	}
	// Output:
	// running
	// not again before 30m0s have passed
	// not again before 30m0s have passed
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
