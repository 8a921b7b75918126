package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/pgbaton/pgbaton"
)

// An operator's question: who holds this, and who waits for it?
func ExampleClient_Locks() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	key := pgbaton.Name("example/report/7")
	lock, err := client.Acquire(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	waiting, cancel := context.WithCancel(ctx)
	over := make(chan error)
	go func() {
		_, err := client.Acquire(waiting, key)
		over <- err
	}()

	var found []pgbaton.LockInfo
	for len(found) < 2 { // a waiter is published when it has waited for one or two seconds, and so is the name of what is held
		time.Sleep(100 * time.Millisecond)
		if found, err = client.Locks(ctx, &pgbaton.LockFilter{Key: key}); err != nil {
			log.Fatal(err)
		}
	}
	for _, l := range found {
		fmt.Printf("%s %s %q, by this client: %t", l.State, l.Kind, l.Name, l.Client != "")
		for _, i := range l.BlockedBy {
			fmt.Printf(", behind the one with its token: %t", found[i].Token == lock.Token())
		}
		fmt.Println()
	}
	cancel()
	<-over
	if err := lock.Release(ctx); err != nil {
		log.Fatal(err)
	}
	// Unordered output:
	// held lock "example/report/7", by this client: true
	// waiting lock "example/report/7", by this client: true, behind the one with its token: true
}

// An operator takes a lock from a holder that hangs, whichever process it is in.
func ExampleClient_Free() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	key := pgbaton.Name("example/report/8")
	lock, err := client.Acquire(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	var freed []pgbaton.LockInfo
	for len(freed) == 0 { // the holder can be asked when it has held the lock for one or two seconds
		time.Sleep(100 * time.Millisecond)
		found, err := client.Locks(ctx, &pgbaton.LockFilter{Key: key, Kind: "lock"})
		if err != nil {
			log.Fatal(err)
		}
		if found[0].Token == 0 {
			continue
		}
		freed, err = client.Free(ctx, found[0], &pgbaton.FreeOpts{Reason: "it hangs"})
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			log.Fatal(err)
		}
	}
	fmt.Println("freed:", freed[0].Name)
	<-lock.Done()
	fmt.Println("the holder was told:", pgbaton.LossReasonOf(lock.Err()))
	// Output:
	// freed: example/report/8
	// the holder was told: freed by an operator
}
