package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/pgbaton/pgbaton"
)

// A service that should hold its locks as leases, because it will move behind a pooler, but goes along with a database whose locks
// are those of sessions.
func ExampleEngine() {
	ctx := context.Background()
	if err := pgbaton.Migrate(ctx, os.Getenv("DATABASE_URL")); err != nil {
		log.Fatal(err)
	}
	client, err := pgbaton.Open(ctx, os.Getenv("DATABASE_URL"), &pgbaton.Config{Engine: pgbaton.EngineLease})
	if errors.Is(err, pgbaton.ErrEngine) {
		log.Print(err) // who recorded the engine, and when
		client, err = pgbaton.Open(ctx, os.Getenv("DATABASE_URL"), &pgbaton.Config{Engine: pgbaton.EngineAuto})
	}
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)
	found, err := client.Diagnose(ctx)
	if err != nil {
		log.Fatal(err)
	}
	switch pgbaton.Engine(found.Engine) {
	case pgbaton.EngineLease, pgbaton.EngineSession:
		fmt.Println("all clients of the database have one engine")
	default:
		fmt.Println("the database is on its way from one engine to the other:", found.Engine)
	}
	// Output: all clients of the database have one engine
}
