package pgbaton

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/session"
)

// NewSQL is [New] for a service that has a *sql.DB: one of pgx's stdlib driver, whose connections say how they were
// opened. NewSQL takes a connection for a moment to ask it, and keeps none. What another driver's connections know is not
// to be had: use [Open] there, for lib/pq for example.
//
// The client opens its connections with the password and the address that this connection had. Hooks that were given to
// stdlib.OpenDB are not to be had either; where passwords rotate, use [New] with a pool.
func NewSQL(ctx context.Context, db *sql.DB, cfg *Config) (*Client, error) {
	if db == nil {
		return nil, errors.New("pgbaton: NewSQL: the database is nil")
	}
	config, err := connConfig(ctx, db)
	if err != nil {
		return nil, wrap(err, "NewSQL")
	}
	return newClient(ctx, session.Dialer{Config: config}, cfg)
}

// connConfig is how the connections of a database are opened.
func connConfig(ctx context.Context, db *sql.DB) (*pgx.ConnConfig, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask a connection how it was opened: %w", err)
	}
	defer conn.Close() //nolint:errcheck // it goes back to db
	var config *pgx.ConnConfig
	err = conn.Raw(func(driver any) error {
		known, ok := driver.(interface{ Conn() *pgx.Conn })
		if !ok {
			return fmt.Errorf("connections of the driver %T do not say how they were opened: use Open, "+
				"or pgx's driver (github.com/jackc/pgx/v5/stdlib)", driver)
		}
		config = known.Conn().Config()
		return nil
	})
	return config, err
}
