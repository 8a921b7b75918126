package peer

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
)

// locks are pgbaton's locks.
type locks struct{ client *pgbaton.Client }

func openPgbaton(ctx context.Context, at Servers) (*pgbaton.Client, error) {
	return pgbaton.Open(ctx, at.Postgres, &pgbaton.Config{TTL: ttl})
}

func openLocks(ctx context.Context, at Servers) (*locks, error) {
	client, err := openPgbaton(ctx, at)
	if err != nil {
		return nil, err
	}
	return &locks{client}, nil
}

func (l *locks) Acquire(ctx context.Context, name string) (Release, error) {
	lock, err := l.client.Acquire(ctx, pgbaton.Name(name))
	if err != nil {
		return nil, err
	}
	return lock.Release, nil
}

func (l *locks) Close(ctx context.Context) error { return l.client.Close(ctx) }

// selects answers with two round trips of the same driver, on one connection: what no use of a database can
// do without.
type selects struct {
	mu   sync.Mutex
	conn *pgx.Conn
}

func openSelects(ctx context.Context, at Servers) (*selects, error) {
	conn, err := pgx.Connect(ctx, at.Postgres)
	if err != nil {
		return nil, err
	}
	return &selects{conn: conn}, nil
}

func (s *selects) Acquire(ctx context.Context, _ string) (Release, error) {
	return s.one, s.one(ctx)
}

func (s *selects) one(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var one int
	return s.conn.QueryRow(ctx, "SELECT 1").Scan(&one)
}

func (s *selects) Close(ctx context.Context) error { return s.conn.Close(ctx) }
