package pgserver

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// CreateDatabase makes a private, empty database with a random name. Advisory locks are per database,
// so tests in different databases never meet. The drop function ends whatever is still connected, and is
// safe when the database is already gone.
func (s *Server) CreateDatabase(ctx context.Context) (dsn string, drop func(context.Context) error, err error) {
	name := "pgbaton_" + strings.ToLower(rand.Text()[:16])
	dsn, err = withDatabase(s.url, name)
	if err != nil {
		return "", nil, err
	}
	// template0, because template1 cannot be copied while anybody is connected to it.
	if err := s.exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0"); err != nil {
		return "", nil, fmt.Errorf("pgserver: create a database: %w", err)
	}
	drop = func(ctx context.Context) error {
		if err := s.exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("pgserver: drop database %s: %w", name, err)
		}
		return nil
	}
	return dsn, drop, nil
}

// exec runs one statement on a connection of its own in the default database.
func (s *Server) exec(ctx context.Context, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	_, err = conn.Exec(ctx, sql)
	return err
}

// withDatabase is dsn with another database. The name may also be in the query, where it would win.
func withDatabase(dsn, name string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", fmt.Errorf("pgserver: read the server's URL: %w", err)
	}
	u.Path = "/" + name
	query := u.Query()
	query.Del("dbname")
	query.Del("database")
	u.RawQuery = query.Encode()
	return u.String(), nil
}
