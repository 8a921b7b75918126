package session

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
)

// ProbePooler returns an error that matches the sentinel for poolers if two connections share server processes, as
// behind a pooler in transaction mode. It sets and locks nothing.
func ProbePooler(ctx context.Context, conn, other *pgconn.PgConn) error {
	return probePooler(ctx, conn, other)
}
