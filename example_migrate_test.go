package pgbaton_test

import (
	"context"
	"log"
	"os"
	"time"

	"github.com/pgbaton/pgbaton"
)

// A program that only migrates, as a step of a deploy: it connects as the role that owns the schema.
func ExampleMigrateDSN() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := pgbaton.MigrateDSN(ctx, os.Getenv("MIGRATION_DATABASE_URL")); err != nil {
		log.Print(err) // it says what is in the way, and what to do
	}
}
