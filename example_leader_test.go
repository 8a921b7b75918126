package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/pgbaton/pgbaton"
)

func ExampleClient_Lead() {
	ctx, shutdown := context.WithCancel(context.Background())
	client := exampleClient(ctx)
	defer client.Close(context.Background())

	err := client.Lead(ctx, "example/scheduler", func(ctx context.Context, term pgbaton.Token) error {
		fmt.Println("this process leads; has a term:", term > 0)
		shutdown() // as the signal to end the process would
		<-ctx.Done()
		return nil
	})
	fmt.Println("campaigns no more:", errors.Is(err, context.Canceled))
	// Output:
	// this process leads; has a term: true
	// campaigns no more: true
}

// A leader that pauses while it does not know whether it still leads, and ends when it does not.
func ExampleLeaderLock() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	done := errors.New("all done")
	err := client.Lead(ctx, "example/dispatcher", func(ctx context.Context, _ pgbaton.Token) error {
		lock := pgbaton.LeaderLock(ctx)
		for range 3 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx) // ErrLost or ErrResigned
			case <-lock.Jeopardy():
				// Nothing was heard from the server for some time. Wait: either the term is lost, or all is well.
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			default:
				fmt.Println("dispatching")
			}
		}
		return done
	})
	fmt.Println(errors.Is(err, done))
	// Output:
	// dispatching
	// dispatching
	// dispatching
	// true
}

func ExampleClient_Resign() {
	ctx, shutdown := context.WithCancel(context.Background())
	client := exampleClient(ctx)
	defer client.Close(context.Background())

	leading, over := make(chan bool), make(chan bool)
	go func() {
		defer close(over)
		_ = client.Lead(ctx, "example/rebalancer", func(ctx context.Context, _ pgbaton.Token) error {
			leading <- true
			<-ctx.Done()
			fmt.Println("told to resign:", errors.Is(context.Cause(ctx), pgbaton.ErrResigned))
			return nil
		})
	}()
	<-leading
	fmt.Println("resigned:", client.Resign(ctx, "example/rebalancer") == nil)
	shutdown()
	<-over
	// Output:
	// told to resign: true
	// resigned: true
}

// What cron calls in every replica, once an hour.
func ExampleClient_Once() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	key := pgbaton.Name(fmt.Sprint("example/hourly/", time.Now().UnixNano())) // in life: "hourly"
	for range 3 {
		err := client.Once(ctx, key, 30*time.Minute, func(context.Context, *pgbaton.Lock) error {
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
