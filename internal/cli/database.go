package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/dsn"
)

// DatabaseVariable is the environment variable that names the database.
const DatabaseVariable = "DATABASE_URL"

// placeVariables are those by which psql and pgx find a server. One of them is enough.
var placeVariables = []string{"PGHOST", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"}

// DatabaseFlagUsage describes the flag that gives the database.
const DatabaseFlagUsage = "`URL` of the database; default: the environment variable " + DatabaseVariable + ", else PGHOST, PGDATABASE and so on"

const connectTimeout = 10 * time.Second

// Database reads the database that a flag or the environment names.
func Database(flagValue string, getenv func(string) string) (*pgxpool.Config, error) {
	text := cmp.Or(flagValue, getenv(DatabaseVariable))
	if text == "" && !slices.ContainsFunc(placeVariables, func(name string) bool { return getenv(name) != "" }) {
		return nil, Usagef("no database is given: use --database-url, or set %s, or PGHOST and PGDATABASE; for example\n"+
			"  export %[1]s=postgres://user@localhost:5432/mydb     # and PGPASSWORD, or a line in ~/.pgpass", DatabaseVariable)
	}
	config, err := dsn.Parse(text)
	if err != nil {
		return nil, Usagef("the database cannot be read: %v", err)
	}
	return config, nil
}

// Connect opens a pool and makes sure that the server answers.
func Connect(ctx context.Context, config *pgxpool.Config) (*pgxpool.Pool, error) {
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, Explain(err)
	}
	return pool, nil
}

// Explain turns an error of connecting into one for people: where, and why. Others it returns as they are.
func Explain(err error) error {
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return err
	}
	return fmt.Errorf("cannot connect to PostgreSQL at %s: %s", Address(connect.Config), reason(connect))
}

func reason(connect *pgconn.ConnectError) string {
	var (
		server  *pgconn.PgError
		unknown *net.DNSError
		network *net.OpError
	)
	switch {
	case errors.As(connect, &server):
		return server.Message
	case errors.As(connect, &unknown) && unknown.IsNotFound:
		return "no such host"
	case errors.Is(connect, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(connect, &network):
		return network.Err.Error()
	default:
		return errors.Unwrap(connect).Error()
	}
}

// Address lists host and port of the servers that a configuration names.
func Address(config *pgconn.Config) string {
	addresses := []string{net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))}
	for _, f := range config.Fallbacks {
		addresses = append(addresses, net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))))
	}
	slices.Sort(addresses)
	return strings.Join(slices.Compact(addresses), ", ")
}
