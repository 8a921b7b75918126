package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DatabaseVariable is the environment variable that names the database.
const DatabaseVariable = "DATABASE_URL"

// DatabaseFlagUsage describes the flag -database of every subcommand that needs a database.
const DatabaseFlagUsage = "`URL` of the database; default: the environment variable " + DatabaseVariable

const connectTimeout = 10 * time.Second

// Database reads the database that the flag -database or the environment names.
func Database(flagValue string, getenv func(string) string) (*pgxpool.Config, error) {
	dsn := cmp.Or(flagValue, getenv(DatabaseVariable))
	if dsn == "" {
		return nil, Usagef("no database is given: set %[1]s or use -database, for example\n"+
			"  %[1]s='postgres://user:password@localhost:5432/mydb' pgbaton ...", DatabaseVariable)
	}
	config, err := pgxpool.ParseConfig(dsn)
	if err == nil {
		return config, nil
	}
	// Any other reason may quote a piece of the URL, and that piece may be of the password.
	var file *fs.PathError
	if errors.As(err, &file) {
		return nil, Usagef("the database URL names a file that cannot be read: %v", file)
	}
	return nil, Usagef("the database URL cannot be read; it looks like postgres://user:password@host:5432/database,\n" +
		"with special characters of the password percent-encoded")
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
