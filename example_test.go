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
	_ "github.com/jackc/pgx/v5/stdlib"

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

// A program that only migrates, as a step of a deploy: it connects as the role that owns the schema.
func ExampleMigrate() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := pgbaton.Migrate(ctx, os.Getenv("DATABASE_URL")); err != nil {
		log.Fatal(err) // it says what is in the way, and what to do
	}
	fmt.Println("the schema is there")
	// Output: the schema is there
}

// What an operator may want to see at the start of a program.
func ExampleClient_Diagnose() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	found, err := client.Diagnose(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("engine:", found.Engine, "pooler:", found.Pooler)
	for setting, why := range found.Refused {
		fmt.Println("locks may outlive their holders longer: ", setting, why)
	}
	// Output: engine: session pooler: none
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

func ExampleLock_Assert() {
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
		if err := lock.Assert(ctx, tx); err != nil { // before the first write
			return err
		}
		_, err := tx.Exec(ctx, "CREATE TEMP TABLE ledger ON COMMIT DROP AS SELECT 42 AS id, 10 AS balance")
		return err
	})
	fmt.Println("written by a holder that nobody has overtaken:", err == nil)
	// Output: written by a holder that nobody has overtaken: true
}

// What a program may want to tell apart when it cannot have a client.
func ExampleOpen() {
	ctx := context.Background()
	exampleClient(ctx).Close(ctx) // only for the schema
	client, err := pgbaton.Open(ctx, os.Getenv("DATABASE_URL"), &pgbaton.Config{Name: "billing", TTL: 10 * time.Second})
	switch {
	case errors.Is(err, pgbaton.ErrSchema):
		log.Fatal("migrate first: ", err)
	case errors.Is(err, pgbaton.ErrPooler), errors.Is(err, pgbaton.ErrStandby), errors.Is(err, pgbaton.ErrUnsupportedServer):
		log.Fatal("another address is needed: ", err)
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println("closed:", client.Close(ctx))
	_, err = client.Acquire(ctx, pgbaton.Name("example/late"))
	fmt.Println("it locks no more:", errors.Is(err, pgbaton.ErrClosed))
	// Output:
	// closed: <nil>
	// it locks no more: true
}

// A lock that is held for too long is lost, and the error says so.
func ExampleLossReasonOf() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	opts := &pgbaton.LockOpts{MaxHold: 50 * time.Millisecond}
	err := client.DoWith(ctx, pgbaton.Name("example/hangs"), opts, func(ctx context.Context, _ *pgbaton.Lock) error {
		<-ctx.Done()
		return nil
	})
	fmt.Println(errors.Is(err, pgbaton.ErrLost), pgbaton.LossReasonOf(err))
	// Output: true held too long
}

// Keys of other programs that use PostgreSQL's advisory locks.
func ExamplePair() {
	ctx := context.Background()
	client := exampleClient(ctx)
	defer client.Close(ctx)

	for _, key := range []pgbaton.Key{pgbaton.ID(4711), pgbaton.Pair(8, 15)} {
		lock, err := client.TryAcquireShared(ctx, key)
		if errors.Is(err, pgbaton.ErrTooManyLocks) {
			log.Fatal("raise Config.MaxHeld: ", err)
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(lock.Key().String(), lock.Release(ctx))
		fmt.Println("held:", !errors.Is(lock.Err(), pgbaton.ErrNotHeld))
	}
	// Output:
	// id:4711 <nil>
	// held: false
	// pair:8,15 <nil>
	// held: false
}

// The token came with a message, from whoever holds the lock.
func ExampleKey_Parts() {
	_, id, _ := pgbaton.Name("invoice/42").Parts() // to find it in pg_locks
	fmt.Println(id)
	_, id, _ = pgbaton.Pair(7, -1).Parts()
	fmt.Println(int32(id>>32), int32(id)) //nolint:gosec // the halves
	// Output:
	// -2627838530059473662
	// 7 -1
}

func ExampleFence() {
	ctx := context.Background()
	exampleClient(ctx).Close(ctx) // only for the schema
	conn := mustConnect(ctx)
	defer conn.Close(ctx)

	write := func(token pgbaton.Token) error {
		return pgbaton.InTx(ctx, conn, nil, func(ctx context.Context, tx pgx.Tx) error {
			if err := pgbaton.Fence(ctx, tx, "example/archive", token); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "UPDATE accounts SET balance = 0 WHERE id = 1")
			return err
		})
	}
	fmt.Println("newer:", write(8))
	fmt.Println("older is refused:", errors.Is(write(7), pgbaton.ErrStaleToken))
	// Output:
	// newer: <nil>
	// older is refused: true
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
